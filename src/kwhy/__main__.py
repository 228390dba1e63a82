"""``python -m kwhy`` is the same as ``kwhy``."""

import sys

from kwhy.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
