"""Hugging Face -> Megatron -> Hugging Face on disk: bits, logits, files, hashes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import LlamaForCausalLM

from nemo_gdpo.conversion.compare.verify import verify
from nemo_gdpo.conversion.convert import convert_hf_to_megatron, convert_megatron_to_hf
from nemo_gdpo.conversion.engine import TensorSpec
from nemo_gdpo.conversion.fingerprint import weights_fingerprint
from nemo_gdpo.conversion.formats.assets import base_licence
from nemo_gdpo.conversion.formats.card import render_card
from nemo_gdpo.conversion.formats.megatron_io import open_megatron, read_checkpoint_model
from nemo_gdpo.conversion.formats.safetensors_writer import plan_shards
from nemo_gdpo.errors import UserError
from tests.conversion.conftest import LLAMA3_ROPE, VOCAB, ModelMaker

Logits = Callable[[Path], torch.Tensor]


def tensors_of(directory: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for path in directory.glob("*.safetensors"):
        found |= load_file(path)
    return found


@pytest.mark.parametrize(
    "changes",
    [
        {"tie_word_embeddings": True},
        {"tie_word_embeddings": False},
        {"rope_parameters": LLAMA3_ROPE, "num_key_value_heads": 1},
        {"dtype": torch.bfloat16, "num_key_value_heads": 4},
    ],
    ids=["tied", "untied", "llama3_rope", "bf16"],
)
def test_round_trip(
    make_model: ModelMaker, logits: Logits, tmp_path: Path, changes: dict[str, Any]
) -> None:
    source = make_model(**changes)
    convert_hf_to_megatron(source, tmp_path / "megatron")
    convert_megatron_to_hf(tmp_path / "megatron", tmp_path / "back")
    before, after = tensors_of(source), tensors_of(tmp_path / "back")
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert after[name].dtype == tensor.dtype
        assert torch.equal(after[name], tensor), name
    assert torch.equal(logits(source), logits(tmp_path / "back"))
    own, exported = (
        json.loads((d / "config.json").read_text()) for d in (source, tmp_path / "back")
    )
    assert own == exported


def test_files_that_travel_and_files_that_do_not(make_model: ModelMaker, tmp_path: Path) -> None:
    source = make_model()
    convert_hf_to_megatron(source, tmp_path / "megatron")
    convert_megatron_to_hf(tmp_path / "megatron", tmp_path / "back")
    present = {p.name for p in (tmp_path / "back").iterdir()}
    assert present == {
        "LICENSE",
        "README.md",
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "nemo_gdpo_conversion.json",
        "tokenizer.json",
    }
    for name in ("chat_template.jinja", "tokenizer.json", "generation_config.json"):
        assert (tmp_path / "back" / name).read_text() == (source / name).read_text()
    card = (tmp_path / "back" / "README.md").read_text()
    assert 'license: "apache-2.0"' in card
    assert 'base_model: "hf"' in card
    assert "weights in float32" in card
    assert f"- torch: {torch.__version__}" in card


def test_shards_have_an_index_and_a_limit(make_model: ModelMaker, tmp_path: Path) -> None:
    source = make_model(max_shard_size="20KB")  # sharded on the way in too
    assert (source / "model.safetensors.index.json").is_file()
    convert_hf_to_megatron(source, tmp_path / "megatron")
    convert_megatron_to_hf(tmp_path / "megatron", tmp_path / "back", max_shard_bytes=20_000)
    index = json.loads((tmp_path / "back" / "model.safetensors.index.json").read_text())
    shards = sorted(set(index["weight_map"].values()))
    assert shards[0] == f"model-00001-of-{len(shards):05d}.safetensors"
    assert len(shards) > 2
    total = 0
    for shard in shards:
        with safe_open(tmp_path / "back" / shard, framework="pt") as file:
            sizes = [file.get_tensor(name).nbytes for name in file.keys()]  # noqa: SIM118
        assert sum(sizes) <= 20_000 or len(sizes) == 1
        total += sum(sizes)
    assert index["metadata"]["total_size"] == total
    reloaded = LlamaForCausalLM.from_pretrained(tmp_path / "back").state_dict()
    for name, tensor in tensors_of(source).items():
        assert torch.equal(reloaded[name], tensor), name


def test_a_tensor_larger_than_a_shard_gets_its_own() -> None:
    specs = [TensorSpec(n, (size,), torch.float32) for n, size in (("a", 2), ("b", 9), ("c", 1))]
    assert [[s.name for s in shard] for shard in plan_shards(specs, 12)] == [["a"], ["b"], ["c"]]
    assert [[s.name for s in shard] for shard in plan_shards(specs, 44)] == [["a", "b"], ["c"]]


def test_cast_on_export_is_stated_in_the_config(make_model: ModelMaker, tmp_path: Path) -> None:
    source = make_model()
    convert_hf_to_megatron(source, tmp_path / "megatron")
    convert_megatron_to_hf(tmp_path / "megatron", tmp_path / "back", dtype=torch.bfloat16)
    assert json.loads((tmp_path / "back" / "config.json").read_text())["dtype"] == "bfloat16"
    back = tensors_of(tmp_path / "back")
    for name, tensor in tensors_of(source).items():
        assert torch.equal(back[name], tensor.bfloat16()), name
    assert LlamaForCausalLM.from_pretrained(tmp_path / "back").dtype == torch.bfloat16


def test_checkpoint_says_what_it_is(make_model: ModelMaker, tmp_path: Path) -> None:
    source = make_model()
    convert_hf_to_megatron(source, tmp_path / "megatron", vocab_divisible_by=64)
    opened = open_megatron(tmp_path / "megatron")
    model, weights = opened.model, opened.weights
    assert model == read_checkpoint_model(tmp_path / "megatron")
    assert (model.config.vocab_size, model.padded_vocab_size) == (VOCAB, 128)
    assert model.source_sha256 == weights_fingerprint(source)
    embedding = weights.tensor("embedding.word_embeddings.weight")
    assert embedding.shape == (128, 32)
    assert torch.count_nonzero(embedding[VOCAB:]) == 0


def test_same_weights_same_files_and_other_weights_other_hash(
    make_model: ModelMaker, tmp_path: Path
) -> None:
    source = make_model()
    for name in ("one", "two"):
        convert_hf_to_megatron(source, tmp_path / name)
    first = weights_fingerprint(tmp_path / "one")
    assert first == weights_fingerprint(tmp_path / "two")
    path = tmp_path / "two" / "dist" / "__0_0.distcp"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert weights_fingerprint(tmp_path / "two") != first


def test_verify_finds_one_changed_value(make_model: ModelMaker, tmp_path: Path) -> None:
    source = make_model()
    convert_hf_to_megatron(source, tmp_path / "megatron")
    report = verify(source, tmp_path / "megatron")
    assert report.same
    assert report.tensors == 21
    other = make_model("other")
    model = LlamaForCausalLM.from_pretrained(other)
    with torch.no_grad():
        model.model.layers[1].self_attn.v_proj.weight[3, 4] += 0.5
    model.save_pretrained(other)
    report = verify(tmp_path / "megatron", other)
    assert [d.name for d in report.differences] == ["model.layers.1.self_attn.v_proj.weight"]
    assert report.differences[0].max_abs_difference == pytest.approx(0.5, abs=1e-6)


def test_verify_compares_architectures(make_model: ModelMaker) -> None:
    report = verify(make_model("a"), make_model("b", rms_norm_eps=1e-6))
    assert report.config_differences == ("layernorm_epsilon: 1e-05 and 1e-06",)
    assert not report.same
    assert not report.differences


def test_links_of_a_hub_cache_are_followed(make_model: ModelMaker, tmp_path: Path) -> None:
    source, cache = make_model(), tmp_path / "snapshot"
    cache.mkdir()
    for path in source.iterdir():
        (cache / path.name).symlink_to(path)
    convert_hf_to_megatron(cache, tmp_path / "megatron")
    assets = tmp_path / "megatron" / "hf_assets"
    assert not any(path.is_symlink() for path in assets.iterdir())
    assert base_licence(assets) == "apache-2.0"
    assert not (assets / "modeling_evil.py").exists()


def test_a_card_under_its_former_name_is_read(make_model: ModelMaker, tmp_path: Path) -> None:
    megatron = tmp_path / "megatron"
    convert_hf_to_megatron(make_model(), megatron)
    card = json.loads((megatron / "model_card.json").read_text())
    assert card == {"base_model": "hf"}
    (megatron / "model_card.json").unlink()
    (megatron / "card_facts.json").write_text(json.dumps({"base_model": "the one before"}))
    convert_megatron_to_hf(megatron, tmp_path / "back")
    assert 'base_model: "the one before"' in (tmp_path / "back" / "README.md").read_text()
    (megatron / "card_facts.json").write_text(json.dumps({"colour": "red"}))
    with pytest.raises(UserError, match=r"card_facts\.json: unknown sections colour"):
        convert_megatron_to_hf(megatron, tmp_path / "back")


def test_model_card_states_what_is_known_and_what_is_not() -> None:
    card = render_card(
        {
            "base_model": "org/base",
            "objective": {"name": "gdpo", "alpha": 0.1},
            "metrics": {"loss": 0.25},
        }
    )
    assert 'base_model: "org/base"' in card
    assert 'tags: ["nemo_gdpo", "gdpo"]' in card
    assert "- alpha: 0.1" in card
    assert "## Training data\n\nnot recorded" in card
    with pytest.raises(ValueError, match="colour"):
        render_card({"colour": "red"})
