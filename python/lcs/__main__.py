"""`python -m lcs`."""

import sys

from .cli import main

sys.exit(main())
