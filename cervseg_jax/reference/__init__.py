"""The way over for users of the reference implementation: its configs and its weights."""
