"""Tests of scores, comparisons and reports."""
