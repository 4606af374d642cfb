"""Adapters from the command line: trained, stopped, exported, taken up again, refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from tests.support.checkpoints import stored
from tests.support.commands import Result, common, metrics, several, steps, without_timing
from tests.support.data import pairs, write_jsonl
from tests.support.models import VOCAB, save_model

from .refusals import snapshot

pytestmark = pytest.mark.parallel

RANK, ALPHA = 4, 8.0
ADAPTERS = [f"lora.rank={RANK}", f"lora.alpha={ALPHA:g}"]
OFF, SWAP = "reference=adapter_off", "reference=swap"
ADAPTER = "adapter_model.safetensors"
TWO_OF_SEVEN = "lora.targets=[q_proj,down_proj]"
LAYERS, STEPS = 2, 4


@dataclass(frozen=True)
class Setting:
    """What the runs here are made of, and how they ended."""

    root: Path
    done: dict[str, Result]

    def output(self, name: str) -> Path:
        return self.root / name

    def checkpoint(self, name: str, step: int = STEPS) -> Path:
        return self.output(name) / "checkpoints" / f"step_{step:08d}"

    def lines(self, name: str) -> list[dict[str, Any]]:
        return without_timing(metrics(self.output(name)))


def run(root: Path, name: str, *more: str, model: str = "model") -> list[str]:
    """The command line of a run of four updates."""
    return [
        "train",
        *common(root / model, root / "train.jsonl", root / name, "objective=dpo"),
        "objective.beta=0.1",
        "optim=adamw_constant",
        "optim.lr=1e-3",
        *steps(STEPS),
        *more,
    ]


def foreign(root: Path) -> None:
    """An adapter that PEFT has made, with values in A and B."""
    model = AutoModelForCausalLM.from_pretrained(root / "model", dtype=torch.float32)
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    config = LoraConfig(
        r=RANK, lora_alpha=ALPHA, target_modules=targets, task_type="CAUSAL_LM"
    )  # fmt: skip
    adapted = get_peft_model(model, config)
    draw = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=draw) * 0.1)
    adapted.save_pretrained(root / "foreign")
    adapted.merge_and_unload().save_pretrained(root / "foreign-merged")
    for file in (root / "model").glob("*token*"):
        shutil.copy(file, root / "foreign-merged")
    shutil.copy(root / "model" / "chat_template.jinja", root / "foreign-merged")


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    root = tmp_path_factory.mktemp("lora")
    save_model(root / "model")
    save_model(root / "other-model", seed=8)
    write_jsonl(root / "train.jsonl", pairs(16))
    foreign(root)
    here = str(root / "foreign")
    cases = {
        "cache": run(root, "cache", *ADAPTERS, "export_hf=true"),
        "off": run(root, "off", *ADAPTERS, OFF),
        "resident": run(root, "resident", *ADAPTERS, "reference=resident"),
        "first half": run(root, "halves", *ADAPTERS, OFF, *steps(2)),
        "second half": run(root, "halves", *ADAPTERS, OFF, "lora.export_peft=false"),
        "swap, first half": run(root, "swapped", *ADAPTERS, SWAP, *steps(2)),
        "swap, second half": run(root, "swapped", *ADAPTERS, SWAP),
        "two targets": run(root, "two", *ADAPTERS, TWO_OF_SEVEN, "export_hf=true"),
        "bf16": run(root, "bf16", *ADAPTERS, OFF, "precision=bf16", "export_hf=true"),
        "converted": run(
            root, "converted", *ADAPTERS, OFF, "model.cache_converted=true", "export_hf=true"
        ),
        "from foreign": run(root, "from-foreign", *ADAPTERS, f"lora.restore_from_path={here}"),
        "from foreign, resident": run(
            root, "resident-foreign", *ADAPTERS, f"lora.restore_from_path={here}",
            "reference=resident",
        ),
        "from foreign, swap": run(
            root, "swap-foreign", *ADAPTERS, f"lora.restore_from_path={here}", SWAP
        ),
        "from merged": run(root, "from-merged", model="foreign-merged"),
        "taken up": run(
            root, "taken-up", *ADAPTERS, f"lora.restore_from_path={root / 'cache' / 'peft'}"
        ),
        "merged later": [
            "convert", "megatron-to-hf", str(root / "cache"), str(root / "later"),
            "--base", str(root / "model"),
        ],
        "peft later": [
            "convert", "megatron-to-peft", str(root / "cache"), str(root / "later-peft"),
        ],
    }  # fmt: skip
    setting = Setting(root, several(root / "logs", cases))
    for name, result in setting.done.items():
        assert result.status == 0, f"{name}: {result.err}"
    return setting


# -- training ------------------------------------------------------------------------------------


def test_training_moves(setting: Setting) -> None:
    lines = setting.lines("cache")
    assert lines[0]["loss"] == pytest.approx(0.693147, rel=1e-5)
    assert lines[-1]["loss"] < 0.69
    assert all(line["grad_norm"] > 0.1 for line in lines)


@pytest.mark.parametrize("other", ["off", "resident", "halves", "swapped", "converted"])
def test_one_trajectory(setting: Setting, other: str) -> None:
    """Whatever the reference is, however the base is read, and if the run is stopped half-way."""
    assert setting.lines(other) == setting.lines("cache")
    weights, expected = (stored(setting.checkpoint(name)) for name in (other, "cache"))
    assert weights.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(weights[name], value), name


def test_a_run_moves_from_mesh_to_mesh(setting: Setting) -> None:
    """Two updates on TP2 with SP, one on PP2, one on a single rank: as on one rank throughout."""
    root, given = setting.root, [*ADAPTERS, OFF]
    tp2 = ["model.tensor_model_parallel_size=2", "model.sequence_parallel=true"]
    pp2 = ["model.pipeline_model_parallel_size=2"]
    two = {
        "TP2": run(root, "moved", *given, *tp2, *steps(2)),
        "PP2": run(root, "moved", *given, *pp2, *steps(3)),
    }
    done = several(root.parent / "logs-of-two", two, ranks=2)
    done |= several(root.parent / "logs-of-one", {"one": run(root, "moved", *given)})
    assert [result.status for result in done.values()] == [0, 0, 0], done
    for line, expected in zip(setting.lines("moved"), setting.lines("cache"), strict=True):
        for name in ("loss", "grad_norm", "logps/chosen", "logps/rejected"):
            assert line[name] == pytest.approx(expected[name], rel=1e-5), name
    moved, still = (load_file(root / n / "peft" / ADAPTER) for n in ("moved", "cache"))
    for name, value in still.items():
        torch.testing.assert_close(moved[name], value, rtol=0, atol=2e-5)


def test_without_a_cache_none_is_computed(setting: Setting) -> None:
    assert (setting.output("cache") / "reference").is_dir()
    assert not (setting.output("off") / "reference").exists()


def test_a_checkpoint_holds_the_adapter_and_its_optimizer_alone(setting: Setting) -> None:
    tensors = stored(setting.checkpoint("cache"))
    weights = {name: t for name, t in tensors.items() if not name.startswith("optimizer.")}
    assert len(weights) == LAYERS * 7 * 2
    assert all(".adapter." in name for name in tensors if name.startswith("decoder"))
    # Hidden and query 32, key and value 16, intermediate 48: inputs and outputs of each matrix.
    sizes = [(32, 32), (32, 16), (32, 16), (32, 32), (32, 48), (32, 48), (48, 32)]
    expected = LAYERS * sum(RANK * (inputs + outputs) for inputs, outputs in sizes)
    assert sum(t.numel() for t in weights.values()) == expected
    moments = [t for name, t in tensors.items() if "exp_avg" in name]
    assert sum(t.numel() for t in moments) == 2 * expected


def test_which_layers_have_adapters(setting: Setting) -> None:
    names = load_file(setting.output("two") / "peft" / ADAPTER)
    assert {name.split(".")[-3] for name in names} == {"q_proj", "down_proj"}
    assert len(names) == LAYERS * 2 * 2


# -- exports -------------------------------------------------------------------------------------


def logits(model: Any) -> Tensor:
    ids = torch.randint(3, VOCAB, (2, 24), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found: Tensor = model(ids).logits
    return found


def with_peft(base: Path, adapter: Path) -> Tensor:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    return logits(PeftModel.from_pretrained(model, adapter))


def of(path: Path) -> Tensor:
    return logits(AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32))


@pytest.mark.parametrize("name", ["cache", "two"])
def test_peft_loads_the_adapter_with_the_logits_of_the_merged_model(
    setting: Setting, name: str
) -> None:
    output, base = setting.output(name), setting.root / "model"
    merged = of(output / "hf")
    torch.testing.assert_close(with_peft(base, output / "peft"), merged, rtol=0, atol=1e-5)
    assert (merged - of(base)).abs().max() > 1e-2


def test_the_merged_model_is_base_plus_scaled_product(setting: Setting) -> None:
    output = setting.output("cache")
    base = load_file(setting.root / "model" / "model.safetensors")
    merged = load_file(output / "hf" / "model.safetensors")
    adapter = load_file(output / "peft" / ADAPTER)
    assert merged.keys() == base.keys()
    for name, weight in base.items():
        low = adapter.get(f"base_model.model.{name.removesuffix('weight')}lora_A.weight")
        high = adapter.get(f"base_model.model.{name.removesuffix('weight')}lora_B.weight")
        assert (low is None) == (name.split(".")[-2][-5:] != "_proj")
        change = 0.0 if low is None or high is None else ALPHA / RANK * high @ low
        torch.testing.assert_close(merged[name], weight + change, rtol=0, atol=1e-6)


def test_a_converted_base_merges_to_the_same_model(setting: Setting) -> None:
    """Its tensors are Megatron's, fused and interleaved."""
    found, expected = (
        load_file(setting.output(name) / "hf" / "model.safetensors")
        for name in ("converted", "cache")
    )
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_16_bit_weights_are_rounded_once(setting: Setting) -> None:
    output = setting.output("bf16")
    base = load_file(setting.root / "model" / "model.safetensors")
    merged = load_file(output / "hf" / "model.safetensors")
    adapter = load_file(output / "peft" / ADAPTER)
    name = "model.layers.1.mlp.up_proj"
    low, high = (adapter[f"base_model.model.{name}.lora_{m}.weight"].float() for m in "AB")
    whole = base[f"{name}.weight"].bfloat16().float() + ALPHA / RANK * high @ low
    assert {tensor.dtype for tensor in (*merged.values(), *adapter.values())} == {torch.bfloat16}
    assert torch.equal(merged[f"{name}.weight"], whole.bfloat16())


def test_later_exports_are_those_of_the_run(setting: Setting) -> None:
    for later, own in (("later", "hf"), ("later-peft", "peft")):
        (file,) = (setting.root / later).glob("*.safetensors")
        expected = load_file(setting.output("cache") / own / file.name)
        assert all(torch.equal(load_file(file)[name], t) for name, t in expected.items())


def test_the_adapter_says_what_it_is(setting: Setting) -> None:
    directory = setting.output("two") / "peft"
    settings = json.loads((directory / "adapter_config.json").read_text())
    assert (settings["r"], settings["lora_alpha"]) == (RANK, ALPHA)
    assert settings["target_modules"] == ["down_proj", "q_proj"]
    assert settings["base_model_name_or_path"] == "model"
    with safe_open(directory / ADAPTER, framework="pt") as file:
        header = file.metadata()
    record = json.loads((setting.checkpoint("two") / "adapter.json").read_text())
    assert header["base_sha256"] == record["base_sha256"]
    card = (setting.output("two") / "hf" / "README.md").read_text()
    assert "- lora: rank 4, alpha 8, on q_proj, down_proj" in card


def test_export_can_be_left_out(setting: Setting) -> None:
    assert (setting.output("off") / "peft").is_dir()
    # The first half was done, and exported, before the second was told not to.
    assert "exported" not in setting.done["second half"].out


# -- starting from an adapter --------------------------------------------------------------------


def test_a_peft_adapter_is_the_start_and_the_reference(setting: Setting) -> None:
    """As for the merged model: the same log-probs, and the loss of two equal models."""
    started, merged = setting.lines("from-foreign")[0], setting.lines("from-merged")[0]
    assert started["loss"] == pytest.approx(0.693147, rel=1e-5)
    for name in ("logps/chosen", "logps/rejected", "reference_logps/chosen"):
        assert started[name] == pytest.approx(merged[name], rel=1e-5)
    assert started[name] != pytest.approx(setting.lines("cache")[0][name], rel=1e-3)
    assert setting.lines("resident-foreign") == setting.lines("from-foreign")
    assert setting.lines("swap-foreign") == setting.lines("from-foreign")


def test_an_exported_adapter_is_taken_up_as_it_was(setting: Setting) -> None:
    first = setting.lines("taken-up")[0]
    assert first["loss"] == pytest.approx(0.693147, rel=1e-5)
    before = setting.lines("cache")[0]
    assert first["logps/chosen"] != pytest.approx(before["logps/chosen"], rel=1e-5)


# -- refusals ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def refused(setting: Setting) -> dict[str, tuple[Result, bool]]:
    root = setting.root
    cases: dict[str, list[str]] = {}
    resumed = {
        "rank": ["lora.rank=8", "lora.alpha=8"],
        "no adapters": [],
        "alpha": [f"lora.rank={RANK}", "lora.alpha=16"],
        "targets": [*ADAPTERS, TWO_OF_SEVEN],
        "start": [*ADAPTERS, f"lora.restore_from_path={root / 'foreign'}"],
    }
    for name, more in resumed.items():
        cases[name] = run(root, f"refused {name}", *more)
    cases["base"] = run(root, "refused base", *ADAPTERS, model="other-model")
    for name in cases:
        shutil.copytree(setting.output("cache"), root / f"refused {name}")
    cases["adapters later"] = run(root, "from-merged", *ADAPTERS, model="foreign-merged")

    def start(name: str, adapter: str, *more: str, model: str = "model") -> None:
        path = f"lora.restore_from_path={adapter}"
        cases[name] = run(root, f"new {name}", path, *more, model=model)

    start("start of another rank", str(root / "foreign"), "lora.rank=8", "lora.alpha=8")
    start("start of another alpha", str(root / "foreign"), f"lora.rank={RANK}")
    start("start of other targets", str(root / "foreign"), *ADAPTERS, TWO_OF_SEVEN)
    start("start of another base", str(root / "cache/peft"), *ADAPTERS, model="other-model")
    changed = root / "dora"
    shutil.copytree(root / "foreign", changed)
    text = (changed / "adapter_config.json").read_text()
    (changed / "adapter_config.json").write_text(
        text.replace('"use_dora": false', '"use_dora": true')
    )
    start("start of another kind", str(changed), *ADAPTERS)
    cases["adapter as a model"] = run(root, "new model", model="halves/checkpoints")
    cases["merge with another base"] = [
        "convert", "megatron-to-hf", str(root / "cache"), str(root / "wrong"),
        "--base", str(root / "other-model"),
    ]  # fmt: skip
    cases["convert without a base"] = [
        "convert", "megatron-to-hf", str(setting.checkpoint("cache")), str(root / "wrong")
    ]  # fmt: skip
    cases["base of a whole model"] = [
        "convert", "megatron-to-hf", str(setting.checkpoint("from-merged")), str(root / "wrong"),
        "--base", str(root / "model"),
    ]  # fmt: skip
    # Not the folder itself: a lock comes and goes in it.
    before = {path: snapshot(path) for path in root.iterdir()}
    results = several(root.parent / "logs-of-refused", cases)
    is_as_it_was = {path: snapshot(path) for path in root.iterdir()} == before
    return {name: (result, is_as_it_was) for name, result in results.items()}


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("rank", "another lora.rank (lora.rank: 4, now 8); restore the setting"),
        ("no adapters", "(lora.rank: 4, now None)"),
        ("alpha", "(lora.alpha: 8.0, now 16.0)"),
        ("targets", "another lora.targets (lora.targets: "),
        ("start", "another weights"),
        ("base", "another weights"),
        ("adapters later", "(lora.rank: None, now 4)"),
        (
            "start of another rank",
            "lora.rank is 8, and the adapter at lora.restore_from_path has 4",
        ),
        ("start of another alpha", "lora.alpha is 32.0, and the adapter at"),
        ("start of other targets", 'lora.targets is ["down_proj", "q_proj"], and the adapter at'),
        ("start of another base", "the adapter is of another base than model.restore_from_path"),
        ("start of another kind", "use_dora is true, which is not built"),
        ("adapter as a model", "holds an adapter alone, without the model that it belongs to"),
        ("merge with another base", "is not the base of this adapter"),
        ("convert without a base", "DIRECTORY --base BASE"),
        ("base of a whole model", "--base: "),
    ],
)
def test_refused_by_name(refused: dict[str, tuple[Result, bool]], name: str, said: str) -> None:
    result, is_as_it_was = refused[name]
    assert result.status == 2, result.err + result.out
    (line,) = [line for line in result.err.splitlines() if "error: " in line]
    assert said in line
    assert "Traceback" not in result.err
    assert is_as_it_was
