"""Run the command line as `python -m opbyte`."""

import sys

from opbyte.sweeps.cli import main

if __name__ == "__main__":
    sys.exit(main())
