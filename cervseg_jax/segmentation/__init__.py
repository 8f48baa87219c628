"""Segmentation of images with trained weights: masks, label maps, measurements and files."""
