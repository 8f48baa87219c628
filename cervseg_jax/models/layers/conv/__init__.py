"""Implementations of convolution and the table that chooses between them."""
