"""Fitting models and evaluating the fit."""
