"""From trained weights and images to masks, nuclei and files."""
