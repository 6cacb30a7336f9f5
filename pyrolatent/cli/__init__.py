"""The command line: parsing and printing only; the work is done by functions of the public Python interface."""

from pyrolatent.cli import tasks  # registers its commands
from pyrolatent.cli.commands import app, main

__all__ = ["app", "main", "tasks"]
