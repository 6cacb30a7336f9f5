"""Experiments, the runs that they leave, and what is said of several of them."""
