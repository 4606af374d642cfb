"""The thin classes: one a paper, under the names that NeMo-Aligner's users look for."""

from __future__ import annotations

from typing import ClassVar

from nemo_gdpo.models.preference_model import MegatronGPTPreferenceModel


class MegatronGPTDPOModel(MegatronGPTPreferenceModel):
    """Direct preference optimisation (Rafailov et al. 2023), label-smoothed, or IPO."""

    objective_names: ClassVar[frozenset[str]] = frozenset({"dpo", "ipo"})


class MegatronGPTGDPOModel(MegatronGPTPreferenceModel):
    """GFlowNet-DPO (Kwon et al., EMNLP 2024)."""

    objective_names: ClassVar[frozenset[str]] = frozenset({"gdpo"})


class MegatronGPTODPOModel(MegatronGPTPreferenceModel):
    """DPO with an offset (Amini et al. 2024)."""

    objective_names: ClassVar[frozenset[str]] = frozenset({"odpo"})


class MegatronGPTADPOModel(MegatronGPTPreferenceModel):
    """Active-query DPO (Ji et al. 2024)."""

    objective_names: ClassVar[frozenset[str]] = frozenset({"adpo"})


MODEL_CLASSES: dict[str, type[MegatronGPTPreferenceModel]] = {
    name: cls
    for cls in (
        MegatronGPTDPOModel,
        MegatronGPTGDPOModel,
        MegatronGPTODPOModel,
        MegatronGPTADPOModel,
    )
    for name in cls.objective_names
}
