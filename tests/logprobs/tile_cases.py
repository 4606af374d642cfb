"""Cases of the way in tiles: sizes, cuts and options, one rank and two."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from nemo_gdpo.logprobs import SelectedLogprobs

from .synthetic import Inputs, random_inputs

RANKS = 2
HIGH = 1e4


@dataclass(frozen=True)
class Case:
    """Inputs, options of `selected_logprobs`, and how the work is cut."""

    tokens: int = 37
    rows: int = 300
    width: int = 16
    vocab_size: int | None = None
    options: dict[str, Any] = field(default_factory=lambda: {"eos_id": 7})
    scale: float = 1.0
    """Of the hidden states, which have a deviation of 2."""
    labels: str = "random"
    """Or "eos": every label is EOS; or "few": three ids, many times each."""
    tile_logits: int = 2**25
    tile_tokens: int = 8192
    block: int = 4096
    """Of every kernel, at most."""
    main_grad: bool = False
    strided: bool = False
    """Hidden states, labels and gradients of the columns that are not contiguous."""
    silent: bool = False
    """Every other token has no part in the loss."""

    def inputs(self) -> Inputs:
        """bfloat16; padded rows hold huge numbers, which must not matter."""
        made = random_inputs(
            self.tokens, self.rows, self.width, vocab_size=self.vocab_size, dtype=torch.bfloat16
        )
        labels = made.labels_T
        if self.labels == "eos":
            labels = torch.full_like(labels, self.options["eos_id"])
        if self.labels == "few":
            labels = torch.tensor([0, self.options["eos_id"], self.rows - 1])[labels % 3]
        if self.vocab_size is not None:
            made.weight_VH[self.vocab_size :] = HIGH
        hidden, label_factor, eos_factor = made.hidden_TH, made.label_factor_T, made.eos_factor_T
        if self.strided:
            hidden = hidden.T.contiguous().T
            labels = torch.stack([labels, labels], dim=1)[:, 0]
        if self.silent:
            label_factor, eos_factor = label_factor.clone(), eos_factor.clone()
            label_factor[::2] = eos_factor[::2] = 0.0
        scaled = (hidden.float() * self.scale).bfloat16()
        return Inputs(scaled, made.weight_VH, labels, label_factor.float(), eos_factor.float())


CUTS: dict[str, dict[str, Any]] = {
    "one tile": {},
    "strips": {"tile_logits": 37 * 128},
    "chunks of tokens": {"tile_tokens": 16},
    "strips and chunks": {"tile_logits": 16 * 128, "tile_tokens": 16, "block": 64},
    "blocks with a rest": {"block": 32},
}
CASES: dict[str, Case] = {
    **{f"plain, {name}": Case(**cut) for name, cut in CUTS.items()},
    **{
        f"all at once, {name}": Case(
            vocab_size=290,
            options={"eos_id": 289, "eos_temperature": 0.1, "logit_softcap": 3.0},
            main_grad=True,
            **cut,
        )
        for name, cut in CUTS.items()
    },
    "one token": Case(tokens=1),
    "one row of the vocabulary": Case(rows=1, options={"eos_id": 0}),
    "one column of hidden states": Case(width=1),
    "odd sizes": Case(tokens=13, rows=131, width=7, tile_logits=13 * 128),
    "wide hidden states": Case(tokens=9, rows=40, width=70, block=32),
    "no EOS": Case(options={}),
    "no EOS, main gradient": Case(options={}, main_grad=True),
    "no tokens": Case(tokens=0),
    "no tokens, main gradient": Case(tokens=0, main_grad=True),
    "main gradient": Case(main_grad=True),
    "label is EOS": Case(labels="eos", main_grad=True),
    "few labels": Case(labels="few", main_grad=True, tile_logits=37 * 128),
    "tempered": Case(options={"eos_id": 7, "eos_temperature": 0.1}),
    "tempered, flat": Case(options={"eos_id": 7, "eos_temperature": 3.0}),
    "soft-cap": Case(options={"eos_id": 7, "logit_softcap": 30.0}),
    "chunk_tokens of one": Case(options={"eos_id": 7, "chunk_tokens": 1}),
    "large logits": Case(scale=300.0, main_grad=True),
    "large logits, soft-cap": Case(scale=300.0, options={"eos_id": 7, "logit_softcap": 5.0}),
    "flat": Case(tokens=64, rows=1024, width=32, scale=0.02, main_grad=True),
    "strided": Case(strided=True),
    "tokens without a part in the loss": Case(silent=True),
}
SHARDED: dict[str, Case] = {
    "EOS on rank 0": Case(options={"eos_id": 7}),
    "EOS on rank 1": Case(options={"eos_id": 290}, main_grad=True),
    "no EOS": Case(options={}),
    "padding in the second shard": Case(vocab_size=170, options={"eos_id": 169}),
    "second shard is padding alone": Case(vocab_size=150, options={"eos_id": 3}, main_grad=True),
    "second and part of the first shard": Case(vocab_size=90, options={"eos_id": 89}),
    "all at once, strips and chunks": Case(
        vocab_size=290,
        options={"eos_id": 289, "eos_temperature": 0.1, "logit_softcap": 3.0},
        main_grad=True,
        **CUTS["strips and chunks"],
    ),
    "tempered, padding alone": Case(vocab_size=150, options={"eos_id": 3, "eos_temperature": 0.1}),
    "label is EOS": Case(labels="eos", options={"eos_id": 290}),
    "few labels": Case(labels="few", options={"eos_id": 290}),
    "no tokens": Case(tokens=0, vocab_size=170),
}
BEFORE = 0.25
"""What every main gradient holds already."""


STRANGE = ("-inf", "inf", "nan")


def strange_inputs(name: str) -> Inputs:
    """Logits of -inf or inf in row 290 and in 0 to 127, the first strip; or one NaN token.

    Token 2's label is one of them.
    """
    inputs = Case(tokens=3).inputs()
    inputs.hidden_TH[:, 0] = 1.0
    if name == "nan":
        inputs.hidden_TH[0, 0] = torch.nan
    else:
        inputs.weight_VH[290, 0] = inputs.weight_VH[:128, 0] = float(name)
    inputs.labels_T[:] = torch.tensor([200, 270, 1])
    return inputs


def strange_scores(scorer: Callable[..., SelectedLogprobs], name: str) -> Tensor:
    """[columns, T] of one of `STRANGE`."""
    inputs = strange_inputs(name)
    columns = scorer(
        inputs.hidden_TH, inputs.weight_VH, inputs.labels_T, eos_id=299, eos_temperature=0.5
    )
    return torch.stack([column for column in columns if column is not None])
