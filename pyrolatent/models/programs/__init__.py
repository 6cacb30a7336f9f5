"""Pyro programs that exist already, unmodified, as models of this package."""
