"""Pure steps, and the loop around them."""
