"""Benchmarks of training, prediction and input on this machine, compared with other programs."""
