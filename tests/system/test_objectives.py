"""Every objective through the one trainer; references, prepared data and models that are reused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, LlamaForCausalLM

from tests.support.commands import Result, common, metrics, several, steps, without_timing
from tests.support.data import pairs, write_jsonl

NAMES = {
    "step", "loss", "grad_norm", "learning_rate", "consumed_pairs", "epoch", "num_tokens",
    "rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies",
    "logps/chosen", "logps/rejected", "perf/tokens_per_second", "train/padding_fraction",
}  # fmt: skip
OWN_NAMES = {
    "gdpo": {"gdpo/tb_residual", "gdpo/db_residual", "gdpo/log_flow", "gdpo/eos_logp"},
    "gdpo_db": {"gdpo/chosen_loss", "gdpo/rejected_loss", "gdpo/db_residual"},
    "odpo": {"odpo/offset"},
    "adpo": {"adpo/query_rate", "adpo/pseudo_label_agreement", "adpo/queries_total"},
    "dpo": set(),
    "ipo": set(),
    "spl": set(),
}
OBJECTIVES = list(OWN_NAMES)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("objectives")


@pytest.fixture(scope="module")
def runs(root: Path, model: Path, data: Path) -> dict[str, Result]:
    """One process; `dpo` converts the model, `from_ready` finds that, others read it directly."""
    held_out = write_jsonl(root / "validation.jsonl", pairs(6, seed=9))
    cases = {
        "dpo": [
            "train",
            *common(model, data, root / "dpo", "objective=dpo", *steps(4)),
            "export_hf=true",
            f"data.validation_path={held_out}",
            "trainer.val_check_interval=2",
            "logger.tensorboard=true",
            "model.cache_converted=true",
        ],
    }
    for name, chosen in {
        "ipo": ["objective=ipo"],
        "spl": ["objective=spl", "objective.alpha=0.2"],
        "odpo": ["objective=odpo"],
        # With pseudo-labels that agree with the data it would be DPO.
        "adpo": ["objective=adpo", "objective.gamma=0.05", "objective.pseudo_labels=false"],
        "gdpo": ["objective=gdpo"],
        "gdpo_db": ["objective=gdpo", "objective.balance=db", "export_hf=true"],
    }.items():
        cases[name] = ["train", *common(model, data, root / name, *chosen, *steps(4))]
    cases["resident"] = [
        "train",
        *common(model, data, root / "resident", "objective=gdpo", "reference=resident", *steps(4)),
    ]
    # The same run from data and reference that were made ahead of it.
    ahead = root / "ahead"
    prepared = ["objective=gdpo", f"data.validation_path={held_out}"]
    cases["prepare"] = ["prepare", *common(model, data, ahead / "data", *prepared)]
    ready = [
        f"data.train_path={ahead / 'data' / 'train'}",
        f"data.validation_path={ahead / 'data' / 'validation'}",
        f"reference_cache_dir={ahead / 'reference'}",
    ]
    cases["reference"] = [
        "reference",
        *common(model, data, ahead / "run", "objective=gdpo", *ready),
    ]
    cases["from_ready"] = [
        "train",
        *common(
            model,
            data,
            ahead / "run",
            "objective=gdpo",
            *ready,
            "model.cache_converted=true",
            *steps(4),
        ),
    ]
    done = several(root / "output", cases)
    for name, result in done.items():
        assert result.status == 0, f"{name}: {result.out[-500:]}\n{result.err[-3000:]}"
    return done


def log(runs: dict[str, Result], root: Path, name: str) -> list[dict[str, Any]]:
    assert runs[name].status == 0
    return metrics(root / name)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_one_object_a_step_with_the_documented_names(
    runs: dict[str, Result], root: Path, name: str
) -> None:
    entries = log(runs, root, name)
    assert [entry["step"] for entry in entries] == [0, 1, 2, 3]
    assert [entry["consumed_pairs"] for entry in entries] == [4, 8, 12, 16]
    for entry in entries:
        assert set(entry) >= NAMES | OWN_NAMES[name]
        assert all(math.isfinite(value) for value in entry.values())
        # ADPO without pseudo-labels learns from the pairs that it asks about, and from no other.
        assert (entry["grad_norm"] > 0) == (entry.get("adpo/query_rate", 1.0) > 0)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_step_0_has_the_loss_of_equal_models(
    runs: dict[str, Result], root: Path, data: Path, name: str
) -> None:
    first = log(runs, root, name)[0]
    if name == "spl":  # alpha and beta differ: equal models have a margin, and the loss is not ln 2
        difference = first["reference_logps/chosen"] - first["reference_logps/rejected"]
        assert first["rewards/margins"] == pytest.approx(0.1 * difference, abs=1e-4)
        assert abs(first["loss"] - math.log(2)) > 1e-3
        return
    assert first["rewards/margins"] == pytest.approx(0, abs=1e-4)
    if name in ("dpo", "adpo"):
        assert first["loss"] == pytest.approx(math.log(2), abs=1e-5)
    elif name == "ipo":
        assert first["loss"] == pytest.approx(25.0, abs=1e-3)
    elif name == "odpo":
        # Mean over the batch: softplus(offset) of every pair, the offset being log of its gap.
        gaps = [r["chosen_score"] - r["rejected_score"] for r in _rows(data)]
        possible = {round(math.log(1 + gap), 4) for gap in gaps}  # softplus(log g) = log(1 + g)
        assert min(possible) <= first["loss"] <= max(possible)
        assert first["loss"] == pytest.approx(_first_batch_mean(data, root), abs=1e-4)
    elif name == "gdpo":
        assert first["loss"] == pytest.approx(64.0, abs=1e-2)
    else:
        assert first["gdpo/chosen_loss"] == pytest.approx(0.0, abs=1e-5)
        assert first["gdpo/rejected_loss"] == pytest.approx(64.0, abs=1e-2)
        assert first["loss"] == pytest.approx(32.0, abs=1e-2)


def _rows(data: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in data.read_text().splitlines()]


def _first_batch_mean(data: Path, root: Path) -> float:
    from nemo_gdpo.data.sampler import PreferenceSampler

    rows = _rows(data)
    first = PreferenceSampler(len(rows), 1234, "").next_global_batch(4)
    gaps = [rows[i]["chosen_score"] - rows[i]["rejected_score"] for i in first]
    return sum(math.log(1 + gap) for gap in gaps) / 4


def test_adpo_asks_for_everything_first_and_less_later(runs: dict[str, Result], root: Path) -> None:
    entries = log(runs, root, "adpo")
    assert entries[0]["adpo/query_rate"] == 1.0
    assert entries[0]["adpo/queries_total"] == 4
    total = 0.0
    for entry in entries:
        total += 4 * entry["adpo/query_rate"]
        assert entry["adpo/queries_total"] == total  # one epoch: no pair comes twice
    assert total < 16


def test_objectives_change_the_weights_each_in_its_own_way(
    runs: dict[str, Result], root: Path
) -> None:
    last = {name: log(runs, root, name)[-1]["logps/rejected"] for name in OBJECTIVES}
    base = log(runs, root, "dpo")[-1]["reference_logps/rejected"]
    values = [*last.values(), base]
    for i, left in enumerate(values):
        for right in values[i + 1 :]:
            assert abs(left - right) > 1e-4, last


def test_cached_and_resident_reference_train_alike(runs: dict[str, Result], root: Path) -> None:
    cached, resident = log(runs, root, "gdpo"), log(runs, root, "resident")
    assert not (root / "resident" / "reference").exists()
    for left, right in zip(without_timing(cached), without_timing(resident), strict=True):
        assert left == pytest.approx(right, rel=1e-5, abs=1e-5)


def test_prepared_data_and_cached_reference_train_equally(
    runs: dict[str, Result], root: Path
) -> None:
    """Equal to the bit, although `gdpo` and the reference read the model directly."""
    run = runs["from_ready"]
    assert "reference train: reused" in run.out
    assert "reference validation: reused" in run.out
    assert "converted model: reused" in run.out
    assert "converted model" not in runs["gdpo"].out
    for ready, plain in zip(metrics(root / "ahead" / "run"), log(runs, root, "gdpo"), strict=True):
        both = [name for name in plain if not name.startswith("perf/")]
        assert {n: ready[n] for n in both} == {n: plain[n] for n in both}


def test_validation_adds_its_means_at_the_configured_steps(
    runs: dict[str, Result], root: Path
) -> None:
    entries = log(runs, root, "dpo")
    assert ["val/loss" in entry for entry in entries] == [False, True, False, True]
    assert entries[1]["val/loss"] != entries[3]["val/loss"]
    assert {"val/rewards/margins", "val/rewards/accuracies"} <= set(entries[1])
    assert list((root / "dpo" / "logs").rglob("events.out.tfevents.*"))


def _megatron_logits(checkpoint: Path, tokens: torch.Tensor) -> torch.Tensor:
    """A plain forward pass on a checkpoint's tensors: what the weights say, without HF names."""
    from nemo_gdpo.conversion.formats.dist_reader import DistTensorSource

    source = DistTensorSource(checkpoint / "dist")
    shapes = source.shapes()

    def get(name: str) -> torch.Tensor:
        (found,) = [n for n in shapes if n.endswith(name)]
        return source.tensor(found).double()

    def norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return x * (x.pow(2).mean(-1, keepdim=True) + 1e-6).rsqrt() * weight

    heads, groups, width = 4, 2, 8
    positions = torch.arange(tokens.shape[0]).double()
    inverse = 10000.0 ** (-torch.arange(0, width, 2).double() / width)
    angles = torch.cat([positions[:, None] * inverse] * 2, dim=-1)

    def rotate(x: torch.Tensor) -> torch.Tensor:
        turned = torch.cat([-x[..., width // 2 :], x[..., : width // 2]], dim=-1)
        return x * angles.cos()[:, None] + turned * angles.sin()[:, None]

    x = get("embedding.word_embeddings.weight")[tokens]
    future = torch.full((len(tokens), len(tokens)), float("-inf")).double().triu(1)
    for layer in range(2):
        prefix = f"layers.{layer}."
        fused = norm(x, get(prefix + "self_attention.linear_qkv.layer_norm_weight"))
        fused = fused @ get(prefix + "self_attention.linear_qkv.weight").T
        # One group after the other: its query heads, then its key, then its value.
        fused = fused.view(len(tokens), groups, heads // groups + 2, width)
        query = rotate(fused[:, :, :-2].reshape(len(tokens), heads, width))
        key = rotate(fused[:, :, -2]).repeat_interleave(heads // groups, dim=1)
        value = fused[:, :, -1].repeat_interleave(heads // groups, dim=1)
        weights = (torch.einsum("qhd,khd->hqk", query, key) / width**0.5 + future).softmax(-1)
        mixed = torch.einsum("hqk,khd->qhd", weights, value).reshape(len(tokens), -1)
        x = x + mixed @ get(prefix + "self_attention.linear_proj.weight").T
        inner = norm(x, get(prefix + "mlp.linear_fc1.layer_norm_weight"))
        gate, up = (inner @ get(prefix + "mlp.linear_fc1.weight").T).chunk(2, dim=-1)
        hidden = torch.nn.functional.silu(gate) * up
        x = x + hidden @ get(prefix + "mlp.linear_fc2.weight").T
    return norm(x, get("final_layernorm.weight")) @ get("output_layer.weight").T


def test_export_says_what_the_checkpoint_says(
    runs: dict[str, Result], root: Path, model: Path
) -> None:
    assert runs["dpo"].status == 0
    output = root / "dpo"
    exported = LlamaForCausalLM.from_pretrained(output / "hf", dtype=torch.float64).eval()
    tokens = torch.arange(5, 25)
    with torch.no_grad():
        logits = exported(tokens[None]).logits[0]
    own = _megatron_logits(output / "checkpoints" / "step_00000004", tokens)[:, : logits.shape[1]]
    torch.testing.assert_close(logits, own, rtol=1e-6, atol=1e-6)
    before = load_file(model / "model.safetensors")
    after = load_file(output / "hf" / "model.safetensors")
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert AutoTokenizer.from_pretrained(output / "hf").chat_template
    # No row of the padded vocabulary leaks out.
    assert logits.shape[1] == len(AutoTokenizer.from_pretrained(model))
