"""Annotation formats, reader and writer in one file each, and the outlines they share."""
