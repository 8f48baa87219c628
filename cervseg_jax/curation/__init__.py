"""Making, checking and describing datasets."""
