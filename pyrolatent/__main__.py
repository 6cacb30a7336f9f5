"""`python -m pyrolatent` is the command line."""

from pyrolatent.cli import main

main()
