"""The command line: parsing and printing only; all work is done by calls that Python users make too."""

from pyrolatent.cli.commands import app, main

__all__ = ["app", "main"]
