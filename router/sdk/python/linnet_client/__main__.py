"""`python -m linnet_client`: the command line without its script."""

import sys

from linnet_client.cli import main

if __name__ == "__main__":
    sys.exit(main())
