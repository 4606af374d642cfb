"""The training loop and everything around it. Importing the package installs the platform first."""

from __future__ import annotations

from nemo_gdpo.launch.logging import quiet_libraries
from nemo_gdpo.platform import current_platform

quiet_libraries()
# Before any module of this package, or NeMo, can import megatron.
current_platform()
