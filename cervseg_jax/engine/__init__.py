"""The pure train, evaluation and prediction steps, and the experiment that compiles them."""
