"""Scores: counts first, formulas after."""
