"""Estimates of log p(x) and diagnostics of their reliability."""
