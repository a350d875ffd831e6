"""`python -m limner` is `limner`."""

import sys

from limner.cli import main

if __name__ == "__main__":  # data workers that are spawned import this file
    sys.exit(main())
