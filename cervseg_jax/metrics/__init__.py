"""Scores of masks, probabilities and single nuclei, computed from per-image counts, with confidence intervals."""
