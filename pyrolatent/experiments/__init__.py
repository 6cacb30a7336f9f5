"""Experiments, their runs, and sweeps and comparisons of runs."""
