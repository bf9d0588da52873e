"""``python -m metallic_native``: the command ``metallic``."""

import sys

from .cli import main

sys.exit(main())
