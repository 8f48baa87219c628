"""The choice of images to annotate, and the folder in which they are corrected."""
