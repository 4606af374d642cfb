"""The training loop and everything around it. Importing the package installs the platform first."""

from __future__ import annotations

from nemo_gdpo.platform import current_platform
from nemo_gdpo.training.logging import quiet_libraries

quiet_libraries()
# Before any module of this package, or NeMo, can import megatron.
current_platform()
