"""The page about a run, in Python and in a browser."""
