"""`python -m nemo_gdpo VERB ...` is `nemo-gdpo VERB ...`."""

from __future__ import annotations

import sys

from nemo_gdpo.cli import main

if __name__ == "__main__":
    sys.exit(main())
