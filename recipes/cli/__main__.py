"""`python -m recipes.cli`, for launchers that want a module."""

import sys

from recipes.cli import main

if __name__ == "__main__":
    sys.exit(main())
