"""`python -m bamboo` is `bamboo`."""

import sys

from bamboo.cli import main

sys.exit(main())
