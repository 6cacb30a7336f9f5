"""Markov chains: what moves them, annealing, and what they draw."""
