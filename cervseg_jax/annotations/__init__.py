"""Readers and writers of annotation formats, and the outlines they share."""
