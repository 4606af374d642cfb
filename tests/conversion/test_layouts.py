"""How tensors are merged, split and cut, against expectations written out by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from nemo_gdpo.conversion.engine import Slot, megatron_tensor, slots_of, to_hf, to_megatron
from nemo_gdpo.conversion.families.llama import read_llama_config
from nemo_gdpo.conversion.layouts import megatron_shape, merge, shard_for_rank, split
from nemo_gdpo.conversion.live import canonical_name
from nemo_gdpo.conversion.model_config import MegatronModelConfig
from nemo_gdpo.errors import UserError
from tests.conversion.conftest import SHAPE, VOCAB

PADDED = 128


def config(**changes: object) -> MegatronModelConfig:
    return read_llama_config(SHAPE | {"model_type": "llama"} | changes, "config.json")


def slot(ending: str, model: MegatronModelConfig) -> Slot:
    return next(s for s in slots_of(model) if s.name.endswith(ending))


class DictSource:
    """A `TensorSource` over tensors in memory."""

    where = "memory"

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self._tensors = tensors

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(t.shape) for name, t in self._tensors.items()}

    def dtype(self, name: str) -> torch.dtype:
        return self._tensors[name].dtype

    def tensor(self, name: str) -> Tensor:
        return self._tensors[name]


def random_hf(model: MegatronModelConfig, dtype: torch.dtype = torch.float32) -> DictSource:
    generator = torch.Generator().manual_seed(3)
    return DictSource(
        {
            name: torch.randn(part.shape(model), generator=generator).to(dtype)
            for s in slots_of(model)
            for name, part in zip(s.hf_names, s.entry.parts, strict=True)
        }
    )


def test_qkv_is_interleaved_by_group() -> None:
    """4 query heads, 2 groups: q0 q1 k0 v0 q2 q3 k1 v1, each of 12 rows."""
    model = config()
    rows = {"q": 4, "k": 2, "v": 2}
    code = {"q": 100, "k": 200, "v": 300}
    # Every row holds 100 * kind + head + its dimension / 100.
    parts = [
        torch.tensor(
            [[code[kind] + head + dim / 100] * 32 for head in range(n) for dim in range(12)]
        )
        for kind, n in rows.items()
    ]
    merged = merge(slot("linear_qkv.weight", model).entry, parts, model, PADDED)
    wanted_heads = [100, 101, 200, 300, 102, 103, 201, 301]
    wanted = torch.tensor([head + dim / 100 for head in wanted_heads for dim in range(12)])
    assert merged.shape == (96, 32)
    assert torch.equal(merged, wanted[:, None].expand(96, 32))


def test_one_group_and_as_many_groups_as_heads() -> None:
    for groups in (1, 4):
        model = config(num_key_value_heads=groups)
        entry = slot("linear_qkv.weight", model).entry
        parts = [torch.randn(part.shape(model)) for part in entry.parts]
        back = split(entry, merge(entry, parts, model, PADDED), model)
        assert all(torch.equal(a, b) for a, b in zip(parts, back, strict=True))


def test_gate_is_above_up_and_each_rank_has_some_of_both() -> None:
    model = config()
    entry = slot("linear_fc1.weight", model).entry
    gate, up = (
        torch.arange(48.0)[:, None].repeat(1, 32),
        1000 + torch.arange(48.0)[:, None].repeat(1, 32),
    )
    whole = merge(entry, [gate, up], model, PADDED)
    assert whole[:, 0].tolist() == [*range(48), *range(1000, 1048)]
    second = shard_for_rank(entry, whole, model, 1, 2)
    assert second[:, 0].tolist() == [*range(24, 48), *range(1024, 1048)]


def test_padding_rows_are_zero_and_do_not_come_back() -> None:
    model = config()
    entry = slot("word_embeddings.weight", model).entry
    embedding = torch.randn(VOCAB, 32)
    padded = merge(entry, [embedding], model, PADDED)
    assert padded.shape == (PADDED, 32)
    assert torch.count_nonzero(padded[VOCAB:]) == 0
    padded[VOCAB:] = 9.0  # as training might leave it
    assert torch.equal(split(entry, padded, model)[0], embedding)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_there_and_back_is_bit_equal(tied: bool, dtype: torch.dtype) -> None:
    model = config(tie_word_embeddings=tied)
    source = random_hf(model, dtype)
    megatron = dict(to_megatron(model, source, padded_vocab_size=PADDED))
    assert ("output_layer.weight" in megatron) is not tied
    back = dict(to_hf(model, DictSource(megatron)))
    assert back.keys() == source.shapes().keys()
    for name, tensor in back.items():
        assert tensor.dtype == dtype
        assert torch.equal(tensor, source.tensor(name)), name


def test_shards_reassemble() -> None:
    """Each kind of tensor, cut for two ranks, makes the whole again."""
    model = config()
    source = random_hf(model)
    kinds = set()
    for s in slots_of(model):
        whole = megatron_tensor(s, model, source, padded_vocab_size=PADDED)
        assert tuple(whole.shape) == megatron_shape(s.entry, model, PADDED)
        shards = [shard_for_rank(s.entry, whole, model, rank, 2) for rank in range(2)]
        kinds.add(s.entry.kind.value)
        match s.entry.kind.value:
            case "norm":
                assert all(torch.equal(shard, whole) for shard in shards)
            case "row":
                assert torch.equal(torch.cat(shards, dim=1), whole)
            case "gate_up":
                gates, ups = zip(*(shard.chunk(2) for shard in shards), strict=True)
                assert torch.equal(torch.cat([*gates, *ups]), whole)
            case _:
                assert torch.equal(torch.cat(shards), whole)
    assert kinds == {"norm", "row", "gate_up", "qkv", "vocab"}


def test_a_rank_holds_whole_groups() -> None:
    model = config()
    source = random_hf(model)
    s = slot("linear_qkv.weight", model)
    whole = megatron_tensor(s, model, source, padded_vocab_size=PADDED)
    shard = shard_for_rank(s.entry, whole, model, 1, 2)
    q, k, v = (source.tensor(name) for name in s.hf_names)
    assert torch.equal(shard, torch.cat([q[24:], k[12:], v[12:]]))


def test_too_many_ranks_for_the_groups() -> None:
    model = config()
    s = slot("linear_qkv.weight", model)
    with pytest.raises(UserError, match="2 key-value groups do not divide over 4"):
        shard_for_rank(s.entry, torch.zeros(96, 32), model, 0, 4)


def test_rows_that_do_not_divide() -> None:
    model = config()
    s = slot("linear_proj.weight", model)
    with pytest.raises(UserError, match="48 does not divide over 5"):
        shard_for_rank(s.entry, torch.zeros(32, 48), model, 0, 5)


def test_parts_of_two_types_are_refused_and_can_be_cast() -> None:
    model = config()
    source = random_hf(model)
    source._tensors["model.layers.0.self_attn.k_proj.weight"] = torch.zeros(24, 32).bfloat16()
    with pytest.raises(UserError, match="different types"):
        dict(to_megatron(model, source, padded_vocab_size=PADDED))
    cast = dict(to_megatron(model, source, padded_vocab_size=PADDED, dtype=torch.bfloat16))
    assert {t.dtype for t in cast.values()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("live", "canonical"),
    [
        ("decoder.layers.1.input_layernorm.weight",
         "decoder.layers.5.self_attention.linear_qkv.layer_norm_weight"),
        ("decoder.layers.0.pre_mlp_layernorm.weight",
         "decoder.layers.4.mlp.linear_fc1.layer_norm_weight"),
        ("decoder.layers.0.mlp.linear_fc2.weight", "decoder.layers.4.mlp.linear_fc2.weight"),
        ("decoder.final_layernorm.weight", "decoder.final_layernorm.weight"),
        ("output_layer.weight", "output_layer.weight"),
    ],
)  # fmt: skip
def test_live_names(live: str, canonical: str) -> None:
    assert canonical_name(live, config(), 4) == canonical


def test_a_tied_output_layer_of_the_last_stage_is_the_embedding() -> None:
    tied = config(tie_word_embeddings=True)
    assert canonical_name("output_layer.weight", tied, 0) == "embedding.word_embeddings.weight"


def named_module(shapes: dict[str, tuple[int, ...]]) -> nn.Module:
    """A module whose parameters have the given dotted names; filled with NaN."""
    root = nn.Module()
    for name, shape in shapes.items():
        *path, leaf = name.split(".")
        module = root
        for part in path:
            if part not in dict(module.named_children()):
                module.add_module(part, nn.Module())
            module = module.get_submodule(part)
        module.register_parameter(leaf, nn.Parameter(torch.full(shape, float("nan"))))
    return root
