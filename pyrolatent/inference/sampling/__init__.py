"""Markov chains: kernels, annealing and sampling."""
