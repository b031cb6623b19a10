"""`python -m mpgort` is the command `mpgort`."""

import sys

from mpgort.cli import main

if __name__ == "__main__":
    sys.exit(main())
