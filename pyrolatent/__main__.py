"""`pyrolatent` and `python -m pyrolatent` are the command line."""

import os
import signal
from typing import Any


def main() -> None:
    """Entry point."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave)  # until a command runs
    from pyrolatent import cli

    cli.main()


def _leave(*_: Any) -> None:
    """Exits with one line of output, since a KeyboardInterrupt may be lost while torch is imported."""
    os.write(2, b"interrupted: nothing was begun\n")
    os._exit(130)


if __name__ == "__main__":  # not in the processes of a sweep, which import this file
    main()
