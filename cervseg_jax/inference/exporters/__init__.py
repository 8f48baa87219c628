"""Label maps and measurements as the files of other programs."""
