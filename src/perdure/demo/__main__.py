"""``python -m perdure.demo``."""

import sys

from perdure.demo import main

if __name__ == "__main__":
    sys.exit(main())
