"""The network families, one per file."""
