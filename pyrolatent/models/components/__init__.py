"""Parts of latent-variable models: families, networks, priors and flows."""
