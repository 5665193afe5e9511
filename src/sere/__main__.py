"""``python -m sere``: the command line where the ``sere`` script is not on the path."""

import sys

from sere.cli import main

sys.exit(main())
