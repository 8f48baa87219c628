"""Choice of the images that are worth annotating next, and the folder in which they are corrected."""
