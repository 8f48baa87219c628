"""One self-contained HTML page about a run or about inferred images, and cards for model and data."""
