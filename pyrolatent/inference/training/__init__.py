"""Training: the loop, and what stands beside it."""
