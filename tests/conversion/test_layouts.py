"""How tensors are merged, split and cut, against expectations written out by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from nemo_gdpo.conversion.bridge import ModelBridge
from nemo_gdpo.conversion.engine import megatron_tensor, rank_tensor, to_hf
from nemo_gdpo.conversion.families.llama import read_llama_config
from nemo_gdpo.conversion.layouts import (
    GatedMLPMapping,
    QKVMapping,
    ReplicatedMapping,
    RowParallelMapping,
    Slice,
    TensorMapping,
    VocabMapping,
)
from nemo_gdpo.conversion.live import canonical_name
from nemo_gdpo.conversion.model_config import MegatronModelConfig
from nemo_gdpo.errors import UserError
from tests.conversion.conftest import SHAPE, VOCAB

PADDED = 128


def config(**changes: object) -> MegatronModelConfig:
    return read_llama_config(SHAPE | {"model_type": "llama"} | changes, "config.json")


def mapping(ending: str, model: MegatronModelConfig) -> TensorMapping:
    return next(m for m in ModelBridge(model).mappings if m.name.endswith(ending))


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

    def part(self, name: str, wanted: Slice) -> Tensor:
        return self._tensors[name].narrow(wanted.dim, wanted.start, wanted.stop - wanted.start)


def to_megatron(
    model: MegatronModelConfig, source: DictSource, dtype: torch.dtype | None = None
) -> dict[str, Tensor]:
    """All of Megatron's tensors, the vocabulary padded to PADDED."""
    bridge = ModelBridge(model)
    return {
        m.name: megatron_tensor(m, bridge, source, padded_vocab_size=PADDED, dtype=dtype)
        for m in bridge.mappings
    }


def shard_of(
    one: TensorMapping, model: MegatronModelConfig, source: DictSource, rank: int, size: int
) -> Tensor:
    """What a rank reads of a mapping, the vocabulary padded to PADDED."""
    return rank_tensor(
        one, ModelBridge(model), source, rows=PADDED // size, tp_rank=rank, tp_size=size
    )


def random_hf(model: MegatronModelConfig, dtype: torch.dtype = torch.float32) -> DictSource:
    generator = torch.Generator().manual_seed(3)
    return DictSource(
        {
            name: torch.randn(shape, generator=generator).to(dtype)
            for name, shape in ModelBridge(model).hf_shapes().items()
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
    merged = mapping("linear_qkv.weight", model).merge(parts, model, PADDED)
    wanted_heads = [100, 101, 200, 300, 102, 103, 201, 301]
    wanted = torch.tensor([head + dim / 100 for head in wanted_heads for dim in range(12)])
    assert merged.shape == (96, 32)
    assert torch.equal(merged, wanted[:, None].expand(96, 32))


def test_one_group_and_as_many_groups_as_heads() -> None:
    for groups in (1, 4):
        model = config(num_key_value_heads=groups)
        qkv = mapping("linear_qkv.weight", model)
        parts = [torch.randn(tensor.shape(model)) for tensor in qkv.hf_tensors]
        back = qkv.split(qkv.merge(parts, model, PADDED), model)
        assert all(torch.equal(a, b) for a, b in zip(parts, back, strict=True))


def test_gate_is_above_up_and_each_rank_has_some_of_both() -> None:
    model = config()
    gate_up = mapping("linear_fc1.weight", model)
    gate, up = (
        torch.arange(48.0)[:, None].repeat(1, 32),
        1000 + torch.arange(48.0)[:, None].repeat(1, 32),
    )
    whole = gate_up.merge([gate, up], model, PADDED)
    assert whole[:, 0].tolist() == [*range(48), *range(1000, 1048)]
    source = DictSource(dict(zip(gate_up.hf_names, (gate, up), strict=True)))
    second = shard_of(gate_up, model, source, 1, 2)
    assert second[:, 0].tolist() == [*range(24, 48), *range(1024, 1048)]


def test_padding_rows_are_zero_and_do_not_come_back() -> None:
    model = config()
    vocabulary = mapping("word_embeddings.weight", model)
    embedding = torch.randn(VOCAB, 32)
    padded = vocabulary.merge([embedding], model, PADDED)
    assert padded.shape == (PADDED, 32)
    assert torch.count_nonzero(padded[VOCAB:]) == 0
    padded[VOCAB:] = 9.0  # as training might leave it
    assert torch.equal(vocabulary.split(padded, model)[0], embedding)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_there_and_back_is_bit_equal(tied: bool, dtype: torch.dtype) -> None:
    model = config(tie_word_embeddings=tied)
    source = random_hf(model, dtype)
    megatron = to_megatron(model, source)
    assert ("output_layer.weight" in megatron) is not tied
    back = dict(to_hf(ModelBridge(model), DictSource(megatron)))
    assert back.keys() == source.shapes().keys()
    for name, tensor in back.items():
        assert tensor.dtype == dtype
        assert torch.equal(tensor, source.tensor(name)), name


def test_shards_reassemble() -> None:
    """Each kind of tensor, cut for two ranks, makes the whole again."""
    model = config()
    source = random_hf(model)
    kinds = set()
    bridge = ModelBridge(model)
    for one in bridge.mappings:
        whole = megatron_tensor(one, bridge, source, padded_vocab_size=PADDED)
        assert tuple(whole.shape) == one.megatron_shape(model, PADDED)
        shards = [shard_of(one, model, source, rank, 2) for rank in range(2)]
        kinds.add(type(one))
        match one:
            case ReplicatedMapping():
                assert all(torch.equal(shard, whole) for shard in shards)
            case RowParallelMapping():
                assert torch.equal(torch.cat(shards, dim=1), whole)
            case GatedMLPMapping():
                gates, ups = zip(*(shard.chunk(2) for shard in shards), strict=True)
                assert torch.equal(torch.cat([*gates, *ups]), whole)
            case _:
                assert torch.equal(torch.cat(shards), whole)
    assert kinds == {
        ReplicatedMapping,
        RowParallelMapping,
        GatedMLPMapping,
        QKVMapping,
        VocabMapping,
    }


def test_a_rank_holds_whole_groups() -> None:
    model = config()
    source = random_hf(model)
    qkv = mapping("linear_qkv.weight", model)
    shard = shard_of(qkv, model, source, 1, 2)
    q, k, v = (source.tensor(name) for name in qkv.hf_names)
    assert torch.equal(shard, torch.cat([q[24:], k[12:], v[12:]]))


def test_too_many_ranks_for_the_groups() -> None:
    model = config()
    with pytest.raises(UserError, match="2 key-value groups do not divide over 4"):
        shard_of(mapping("linear_qkv.weight", model), model, random_hf(model), 0, 4)


def test_rows_that_do_not_divide() -> None:
    model = config()
    with pytest.raises(UserError, match="48 does not divide over 5"):
        shard_of(mapping("linear_proj.weight", model), model, random_hf(model), 0, 5)


def test_a_rank_may_hold_padding_only() -> None:
    """101 tokens in 256 rows: the second of two ranks has none of them."""
    model = config()
    source = random_hf(model)
    vocabulary = mapping("word_embeddings.weight", model)
    first, second = (
        rank_tensor(vocabulary, ModelBridge(model), source, rows=128, tp_rank=rank, tp_size=2)
        for rank in range(2)
    )
    assert torch.equal(first[:VOCAB], source.tensor("model.embed_tokens.weight"))
    assert torch.count_nonzero(first[VOCAB:]) == 0
    assert second.shape == (128, 32) and torch.count_nonzero(second) == 0
    with pytest.raises(RuntimeError, match="100 rows cannot hold 101 tokens"):
        rank_tensor(vocabulary, ModelBridge(model), source, rows=50, tp_rank=0, tp_size=2)


def test_parts_of_two_types_are_refused_and_can_be_cast() -> None:
    model = config()
    source = random_hf(model)
    source._tensors["model.layers.0.self_attn.k_proj.weight"] = torch.zeros(24, 32).bfloat16()
    with pytest.raises(UserError, match="different types"):
        to_megatron(model, source)
    cast = to_megatron(model, source, torch.bfloat16)
    assert {t.dtype for t in cast.values()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("live", "canonical"),
    [
        (
            "decoder.layers.1.input_layernorm.weight",
            "decoder.layers.5.self_attention.linear_qkv.layer_norm_weight",
        ),
        (
            "decoder.layers.0.pre_mlp_layernorm.weight",
            "decoder.layers.4.mlp.linear_fc1.layer_norm_weight",
        ),
        ("decoder.layers.0.mlp.linear_fc2.weight", "decoder.layers.4.mlp.linear_fc2.weight"),
        ("decoder.final_layernorm.weight", "decoder.final_layernorm.weight"),
        ("output_layer.weight", "output_layer.weight"),
    ],
)
def test_live_names(live: str, canonical: str) -> None:
    assert canonical_name(live, ModelBridge(config()), 4) == canonical


def test_a_tied_output_layer_of_the_last_stage_is_the_embedding() -> None:
    tied = ModelBridge(config(tie_word_embeddings=True))
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
