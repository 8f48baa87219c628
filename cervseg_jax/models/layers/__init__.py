"""Layers and blocks that several families share."""
