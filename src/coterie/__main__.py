"""`python -m coterie` is the command `coterie`."""

import sys

try:
    from coterie.cli.main import main
except KeyboardInterrupt:  # Ctrl-C before there was anything to interrupt
    sys.exit(130)

if __name__ == "__main__":
    sys.exit(main())
