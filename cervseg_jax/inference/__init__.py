"""From trained weights and images to masks."""
