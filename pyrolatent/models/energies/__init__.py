"""Densities known up to their normaliser."""
