"""log p(x), and how far an estimate of it can be trusted."""
