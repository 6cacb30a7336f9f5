"""Training: the loop, optimisers, compilation, validation and diagnosis."""
