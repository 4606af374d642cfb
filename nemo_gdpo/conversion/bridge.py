"""The mapping table of one model, made once and passed along."""

from __future__ import annotations

from pathlib import Path

from nemo_gdpo.conversion.families import family_of, read_hf_config
from nemo_gdpo.conversion.layouts import TensorMapping
from nemo_gdpo.conversion.model_config import MegatronModelConfig


class ModelBridge:
    """The architecture of a model, its family, and the mapping of every tensor it has."""

    def __init__(self, config: MegatronModelConfig) -> None:
        """Work out the tensors of a model.

        Args:
            config: the architecture.

        Raises:
            UserError: its family is not known.
        """
        self.config = config
        self.family = family_of(config)
        self.mappings = _mappings_of(config, self.family.mappings)
        """Every tensor: before the layers, layer by layer, after them; in the table's order."""
        self.by_name = {mapping.name: mapping for mapping in self.mappings}
        """Megatron's name -> mapping."""

    @classmethod
    def from_hf(cls, source: Path) -> ModelBridge:
        """Read the config.json of a Hugging Face directory.

        Raises:
            UserError: it is missing or damaged, or describes a model that is not built.
        """
        return cls(read_hf_config(source))

    @property
    def extra_states(self) -> list[str]:
        """Modules with an extra state, layer by layer; see `Family.extra_states`."""
        return [
            name.format(layer=layer)
            for name in self.family.extra_states
            for layer in (range(self.config.num_layers) if "{layer}" in name else (0,))
        ]

    def hf_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of every tensor that the Hugging Face checkpoint has to hold."""
        return {
            tensor.name: tensor.shape(self.config)
            for mapping in self.mappings
            for tensor in mapping.hf_tensors
        }


def _mappings_of(
    config: MegatronModelConfig, table: tuple[TensorMapping, ...]
) -> tuple[TensorMapping, ...]:
    present = [mapping for mapping in table if mapping.condition(config)]
    per_layer = [mapping for mapping in present if mapping.per_layer]
    first = present.index(per_layer[0])
    return (
        *(mapping for mapping in present[:first] if not mapping.per_layer),
        *(m.at_layer(layer) for layer in range(config.num_layers) for m in per_layer),
        *(mapping for mapping in present[first:] if not mapping.per_layer),
    )
