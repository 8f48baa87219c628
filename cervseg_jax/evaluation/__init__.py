"""Evaluation of runs: scores, tables and pictures."""
