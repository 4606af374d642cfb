"""NeMo's model classes and archives. The only package that imports nemo.

Everything they do is done by `nemo_gdpo.models.PreferenceModel`, which they hold.
"""

from __future__ import annotations

import os

from nemo_gdpo.launch.logging import quiet_libraries
from nemo_gdpo.platform import current_platform

quiet_libraries()
# Before NeMo can import megatron.
current_platform()

from nemo.utils import logging as nemo_logging  # noqa: E402 - the shim precedes megatron

if os.environ.get("NEMO_GDPO_VERBOSE") != "1":
    # NeMo's logger is an object of its own, made when NeMo is imported.
    nemo_logging.setLevel(nemo_logging.ERROR)
