"""Building the image takes root, a network and minutes: only `make image-test` asks for it."""

from __future__ import annotations

import os

collect_ignore = [] if os.environ.get("NEMO_GDPO_IMAGE_TEST") else ["test_built.py"]
