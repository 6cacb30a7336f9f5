"""How models are fitted and how well."""
