"""The training loop around the pure steps of the engine."""
