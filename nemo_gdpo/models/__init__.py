"""Model classes on megatron-core's GPT. Importing this package installs the platform first."""

from __future__ import annotations

from nemo_gdpo.platform import current_platform

current_platform()

from nemo_gdpo.models.classes import (  # noqa: E402 - the CPU shim precedes every megatron import
    MODEL_CLASSES,
    MegatronGPTADPOModel,
    MegatronGPTDPOModel,
    MegatronGPTGDPOModel,
    MegatronGPTODPOModel,
)
from nemo_gdpo.models.preference_model import MegatronGPTPreferenceModel  # noqa: E402

__all__ = [
    "MODEL_CLASSES",
    "MegatronGPTADPOModel",
    "MegatronGPTDPOModel",
    "MegatronGPTGDPOModel",
    "MegatronGPTODPOModel",
    "MegatronGPTPreferenceModel",
]
