"""`python -m multus.cli` is `multusctl`."""

import sys

from multus.cli import main

sys.exit(main())
