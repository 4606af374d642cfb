"""Which layers a run is built of, and what of them is recomputed."""

from __future__ import annotations

from nemo_gdpo.config.checks_layers import LAYERS, contradiction
from nemo_gdpo.config.problem import Problem
from nemo_gdpo.errors import UserError
from nemo_gdpo.platform.base import LOCAL, TRANSFORMER_ENGINE, Capabilities, Finding
from nemo_gdpo.precisions import REHEARSAL, REHEARSALS


def choose_layers(asked: str, precision: str, capabilities: Capabilities) -> Finding | Problem:
    """The layers that `asked` gives on this machine, or why it gives none.

    Never the local layers by default on a GPU: they are slower, and somebody whose
    Transformer Engine is missing would not notice.

    Args:
        asked: value of `model.layers`.
        precision: value of `precision`.
        capabilities: of the machine.
    """
    wrong = contradiction(asked, precision)
    if wrong is not None:
        return wrong
    if capabilities.unusable is not None:
        return capabilities.unusable
    engine = capabilities.transformer_engine
    if asked == LOCAL:
        return Finding(LOCAL, f"{LAYERS}=local asks for them")
    if capabilities.device_type == "cpu":
        if asked == TRANSFORMER_ENGINE:
            return Problem(LAYERS, engine.reason, "set it to auto")
        return Finding(LOCAL, engine.reason)
    if precision in REHEARSALS:
        return Finding(LOCAL, f"{REHEARSAL}: their products are what is rounded")
    if asked == "auto" and precision == "fp32":
        return Finding(LOCAL, "Transformer Engine multiplies fp32 in TF32")
    if engine.ok:
        return Finding(TRANSFORMER_ENGINE)
    return Problem(
        LAYERS,
        engine.reason,
        "install the gpu extra or use the image; or set it to local for megatron-core's own "
        "layers, which are slower",
    )


def layers_for(asked: str, precision: str, capabilities: Capabilities) -> str:
    """`"transformer_engine"` or `"local"`: what a run is built of.

    Raises:
        UserError: neither can be had as `asked`.
    """
    chosen = choose_layers(asked, precision, capabilities)
    if isinstance(chosen, Problem):
        raise UserError(str(chosen))
    return chosen.value


def recompute_modules(layers: str, backend: str, *, softcap: bool) -> list[str]:
    """Parts of a layer that selective recomputation computes again, in megatron's names.

    The scores of attention are worth it where they are kept for the backward pass: in the local
    layers, in Transformer Engine's unfused back end, and under a soft-cap, which is written out. A
    fused kernel keeps none of them, and computing it again saves next to nothing. What then holds
    most memory is the MLP: its two inner activations are `3 * ffn_hidden_size` numbers a token,
    more than all else in a layer. `layernorm` would do nothing, since Transformer Engine's norms
    are parts of its linear layers (megatron/core/transformer/transformer_layer.py of 0.19.2 leaves
    an `IdentityOp` alone), and `moe_act` is for experts only.

    Args:
        layers: `"transformer_engine"` or `"local"`.
        backend: value of `model.attention_backend`.
        softcap: the model caps its scores.
    """
    keeps_scores = layers == LOCAL or backend == "unfused" or softcap
    return ["core_attn"] if keeps_scores else ["mlp"]
