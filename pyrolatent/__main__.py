"""`python -m pyrolatent` is the command line."""

from pyrolatent.cli import main

if __name__ == "__main__":  # and not in the processes of a sweep, which import this file
    main()
