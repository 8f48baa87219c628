"""Importers for configs and weights of the reference implementation."""
