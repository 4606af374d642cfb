"""Archives of NeMo 1 and NeMo-Aligner, laid out as they wrote them, against the model inside."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoTokenizer

from nemo_gdpo.conversion.cli import main
from nemo_gdpo.conversion.compare.verify import verify
from nemo_gdpo.conversion.convert import convert_megatron_to_hf
from nemo_gdpo.conversion.formats.megatron_io import open_megatron
from nemo_gdpo.conversion.nemo1.nemo_config import MAX_BYTES, NEUTRAL, ONLY, read_nemo_config
from nemo_gdpo.conversion.nemo1.nemo_import import convert_nemo_to_megatron
from nemo_gdpo.conversion.resolve import resolve_checkpoint
from nemo_gdpo.errors import UserError
from tests.support import models
from tests.support.commands import cli as run_command
from tests.support.commands import common, steps
from tests.support.data import write_jsonl

pytestmark = pytest.mark.slow

pytest.importorskip("megatron.core.package_info")
ROOT = Path(__file__).parents[3]
VOCAB, PADDED = 120, 256
HASH = "0123456789abcdef0123456789abcdef_tokenizer.model"

COMMON: dict[str, Any] = {
    # sizes of tests.support.models
    "num_layers": 4, "hidden_size": 64, "ffn_hidden_size": 96, "num_attention_heads": 4,
    "num_query_groups": 2, "encoder_seq_length": 128,
    "max_position_embeddings": "${.encoder_seq_length}", "layernorm_epsilon": 1e-6,
    # as NeMo's examples have them
    "mcore_gpt": True, "transformer_engine": True, "megatron_amp_O2": True, "precision": "bf16",
    "micro_batch_size": 1, "global_batch_size": 64, "tensor_model_parallel_size": 2,
    "pipeline_model_parallel_size": 1, "hidden_dropout": 0.0, "attention_dropout": 0.0,
    "normalization": "rmsnorm", "bias": False, "headscale": False, "rotary_percentage": 1.0,
    "transformer_block_type": "pre_ln", "normalize_attention_scores": True,
    "position_embedding_type": "rope", "attention_type": "multihead",
    "make_vocab_size_divisible_by": 128, "apply_query_key_layer_scaling": True,
    "tokenizer": {"library": "sentencepiece", "type": None, "model": f"nemo:{HASH}",
                  "sentencepiece_legacy": False},
    "dpo": {"ref_policy_kl_penalty": 0.2, "preference_loss": "dpo"}, "seed": 1234,
    "optim": {"name": "distributed_fused_adam", "lr": 9e-6}, "peft": {"peft_scheme": "none"},
    "target": "os.system", "nemo_version": "2.0.0",
}  # fmt: skip
LLAMA = {
    **COMMON, "activation": "fast-swiglu", "openai_gelu": False, "kv_channels": None,
    "share_embeddings_and_output_weights": False, "rotary_base": 10000.0,
    "scale_positional_embedding": True, "scale_factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "old_context_len": 16, "seq_len_interpolation_factor": None,
}  # fmt: skip
GEMMA = {
    **COMMON, "activation": "geglu", "openai_gelu": True, "kv_channels": 24,
    "share_embeddings_and_output_weights": True, "apply_embedding_scaling": True,
}  # fmt: skip


def pieces(directory: Path) -> Path:
    """A SentencePiece model of `VOCAB` pieces."""
    from sentencepiece import SentencePieceTrainer

    texts = ["the quick brown fox jumps over the lazy dog", "pack my box with five dozen jugs"] * 9
    SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_prefix=str(directory / "tokenizer"),
        model_type="bpe",
        vocab_size=VOCAB,
        hard_vocab_limit=True,
        bos_id=1,
        eos_id=2,
        unk_id=0,
        minloglevel=2,
    )
    return directory / "tokenizer.model"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """llama.nemo, gemma.nemo (compressed), gemma_bf16.nemo, no_tokenizer.nemo, and the models."""
    root = tmp_path_factory.mktemp("nemo")
    model = pieces(root)
    models.save("llama_llama3", root / "llama", vocab_size=VOCAB, tie_word_embeddings=False)
    models.save("gemma", root / "gemma", vocab_size=VOCAB)
    settings = {
        "llama": {"hf": "llama", "config": LLAMA},
        "gemma": {"hf": "gemma", "config": GEMMA, "norm_offset": 1.0, "compress": True},
        "gemma_bf16": {
            "hf": "gemma",
            "config": GEMMA,
            "norm_offset": 1.0,
            "dtype": "bfloat16",
            "first_norm": 0.4,
        },
        "no_tokenizer": {
            "hf": "llama",
            "files": {},
            "config": {**LLAMA, "tokenizer": {"library": "huggingface", "type": "meta/Llama-3"}},
        },
    }
    for name, changes in settings.items():
        one = {
            "norm_offset": 0.0,
            "first_norm": None,
            "padded": PADDED,
            "compress": False,
            "dtype": "float32",
            "files": {HASH: str(model)},
            "archive": str(root / f"{name}.nemo"),
            **changes,
            "hf": str(root / str(changes["hf"])),
        }
        (root / f"{name}.json").write_text(json.dumps(one))
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "tests.conversion.nemo1.nemo_layout",
            *(str(root / f"{name}.json") for name in settings),
        ],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return root


def test_archive_has_the_layout_of_nemo(made: Path, tmp_path: Path) -> None:
    """Otherwise the tests below would test another format."""
    from nemo_gdpo.conversion.formats.dist_reader import DistTensorSource

    with tarfile.open(made / "llama.nemo") as tar:
        tar.extractall(tmp_path, filter="data")
    assert {p.name for p in tmp_path.iterdir()} == {"model_weights", "model_config.yaml", HASH}
    assert (tmp_path / "model_weights" / "common.pt").is_file()
    shapes = DistTensorSource(tmp_path / "model_weights", others_too=False).shapes()
    assert shapes["model.decoder.layers.self_attention.linear_qkv.weight"] == (4, 128, 64)
    assert shapes["model.embedding.word_embeddings.weight"] == (PADDED, 64)
    assert shapes["model.decoder.layers.mlp.linear_fc1.layer_norm_weight"] == (4, 64)


def test_llama_is_the_same_bit_for_bit(made: Path, tmp_path: Path) -> None:
    model = convert_nemo_to_megatron(made / "llama.nemo", tmp_path / "megatron")
    assert (model.config.vocab_size, model.padded_vocab_size) == (VOCAB, 128)
    report = verify(made / "llama", tmp_path / "megatron")
    assert report.same, report
    assert report.tensors == 39
    embedding = open_megatron(tmp_path / "megatron").weights.tensor(
        "embedding.word_embeddings.weight"
    )
    assert torch.count_nonzero(embedding[VOCAB:]) == 0  # NeMo had sevens there
    convert_megatron_to_hf(tmp_path / "megatron", tmp_path / "hf")
    tokens = models.tokens()
    with torch.no_grad():
        ours, theirs = (models.load(d)(tokens).logits for d in (tmp_path / "hf", made / "llama"))
    assert torch.equal(ours, theirs)


def test_gemma_has_one_subtracted_from_its_norms(made: Path, tmp_path: Path) -> None:
    convert_nemo_to_megatron(made / "gemma.nemo", tmp_path / "megatron")
    convert_megatron_to_hf(tmp_path / "megatron", tmp_path / "hf")
    ours, theirs = (load_file(d / "model.safetensors") for d in (tmp_path / "hf", made / "gemma"))
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        if "norm" in name:
            # NeMo rounded when it added one.
            torch.testing.assert_close(ours[name], tensor, atol=1e-7, rtol=0)
        else:
            assert torch.equal(ours[name], tensor), name
    tokens = models.tokens()
    with torch.no_grad():
        one, other = (models.load(d)(tokens).logits for d in (tmp_path / "hf", made / "gemma"))
    torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


def test_norms_that_the_type_cannot_hold_are_refused(made: Path, tmp_path: Path) -> None:
    """0.4 in bf16 is 205 / 512; less one, -307 / 512, takes nine bits where there are eight."""
    with pytest.raises(UserError, match=r"does not fit torch.bfloat16 exactly.*--dtype fp32"):
        convert_nemo_to_megatron(made / "gemma_bf16.nemo", tmp_path / "megatron")
    convert_nemo_to_megatron(made / "gemma_bf16.nemo", tmp_path / "megatron", dtype=torch.float32)
    weights = open_megatron(tmp_path / "megatron").weights
    norm = load_file(made / "gemma" / "model.safetensors")["model.norm.weight"]
    expected = (norm.bfloat16() + 1.0).float() - 1.0
    expected[0] = -307 / 512
    assert torch.equal(weights.tensor("decoder.final_layernorm.weight"), expected)


def test_tokenizer_comes_out_of_the_archive(made: Path, tmp_path: Path) -> None:
    from sentencepiece import SentencePieceProcessor

    convert_nemo_to_megatron(made / "llama.nemo", tmp_path / "megatron")
    assets = tmp_path / "megatron" / "hf_assets"
    config = json.loads((assets / "config.json").read_text())
    assert (config["bos_token_id"], config["eos_token_id"]) == (1, 2)
    tokenizer = AutoTokenizer.from_pretrained(assets)
    text = "the lazy dog jumps over five jugs"
    expected = SentencePieceProcessor(model_file=str(made / "tokenizer.model")).encode(text)
    assert tokenizer(text, add_special_tokens=False)["input_ids"] == expected
    assert len(tokenizer) == VOCAB


def test_an_archive_without_a_tokenizer_needs_one(made: Path, tmp_path: Path) -> None:
    archive = made / "no_tokenizer.nemo"
    with pytest.raises(UserError, match=r"'meta/Llama-3'.*--tokenizer.*--vocab-size"):
        convert_nemo_to_megatron(archive, tmp_path / "megatron")
    assert list(tmp_path.iterdir()) == []
    model = convert_nemo_to_megatron(archive, tmp_path / "number", vocab_size=VOCAB)
    assert model.config.vocab_size == VOCAB
    assert verify(made / "llama", tmp_path / "number").same
    tokenizer = tmp_path / "tokenizer"
    tokenizer.mkdir()
    vocabulary = {"model": {"vocab": {f"t{n}": n for n in range(VOCAB)}}, "added_tokens": []}
    (tokenizer / "tokenizer.json").write_text(json.dumps(vocabulary))
    (tokenizer / "config.json").write_text(json.dumps({"eos_token_id": [3, 4]}))
    convert_nemo_to_megatron(archive, tmp_path / "given", tokenizer=tokenizer)
    assert verify(made / "llama", tmp_path / "given").same
    config = json.loads((tmp_path / "given" / "hf_assets" / "config.json").read_text())
    assert config["eos_token_id"] == [3, 4]
    with pytest.raises(UserError, match=r"has 120 tokens .*only 100 rows"):
        convert_nemo_to_megatron(archive, tmp_path / "x", tokenizer=tokenizer, vocab_size=100)


def test_command_line_and_an_unpacked_directory(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unpacked = tmp_path / "unpacked"
    with tarfile.open(made / "llama.nemo") as tar:
        tar.extractall(unpacked, filter="data")
    assert main(["nemo-to-megatron", str(unpacked), str(tmp_path / "one")]) == 0
    assert "llama, 4 layers, vocabulary 120 padded to 128" in capsys.readouterr().out
    assert main(["nemo-to-megatron", str(made / "llama.nemo"), str(tmp_path / "two")]) == 0
    assert verify(tmp_path / "one", tmp_path / "two").same
    assert main(["verify", str(made / "llama.nemo"), str(made / "llama"), "--tensors-only"]) == 0
    assert main(["hf-to-megatron", str(made / "llama.nemo"), str(tmp_path / "x")]) == 2
    assert "nemo-to-megatron" in capsys.readouterr().err


def test_training_takes_the_archive_and_keeps_the_conversion(made: Path) -> None:
    first = resolve_checkpoint(made / "gemma.nemo")
    written = (first / "model_config.json").stat().st_mtime_ns
    assert resolve_checkpoint(made / "gemma.nemo") == first
    assert (first / "model_config.json").stat().st_mtime_ns == written


def test_training_on_an_archive_and_the_card_of_its_checkpoint(made: Path, tmp_path: Path) -> None:
    rows = [
        {"prompt": "the lazy dog", "chosen": f" jumps {n}", "rejected": f" box {n}"}
        for n in range(4)
    ]
    data = write_jsonl(tmp_path / "pairs.jsonl", rows)
    done = run_command(
        "train",
        "objective=gdpo",
        *common(made / "llama.nemo", data, tmp_path / "run", *steps(1)),
    )
    assert done.status == 0, done.err
    assert "made" in done.out
    checkpoint = tmp_path / "run" / "checkpoints" / "step_00000001"
    assert main(["megatron-to-hf", str(checkpoint), str(tmp_path / "hf")]) == 0
    card = (tmp_path / "hf" / "README.md").read_text()
    for line in (
        "- method: gflownet_dpo",
        "- pairs: 4",
        "TP1 PP1 CP1 DP1",
        "fp32",
        "EMNLP 2024",
        "- megatron-core: ",
        'base_model: "llama.nemo"',
        "- loss: ",
    ):
        assert line in card, line
    assert card.count("not recorded") == 1  # the licence: the archive has none


# -- what is refused -------------------------------------------------------------------------------


def config_file(directory: Path, base: dict[str, Any], **changes: Any) -> Path:
    path = directory / "model_config.yaml"
    path.write_text(yaml.safe_dump({**base, **changes}))
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_moe_experts": 8}, "num_moe_experts is 8, which is not supported"),
        ({"bias": True}, "bias is True"),
        ({"qkv_bias": True}, "qkv_bias is True"),
        ({"window_size": [4096, 0]}, "window_size"),
        ({"rotary_percentage": 0.5}, "rotary_percentage is 0.5"),
        ({"position_embedding_type": "learned_absolute"}, "position_embedding_type"),
        ({"mcore_customization_config": {"final_logit_softcapping": 30.0}}, "mcore_customization"),
        ({"name": "megatron_gemma2"}, "megatron_gemma2"),
        ({"mcore_gpt": False}, "mcore_gpt is False"),
        ({"normalization": "layernorm1p"}, "normalization layernorm1p"),
        ({"layernorm_zero_centered_gamma": True}, "which no Llama has"),
        ({"activation": "geglu"}, "neither a Llama .* nor a Gemma"),
        ({"apply_embedding_scaling": True}, "neither a Llama .* nor a Gemma"),
        ({"openai_gelu": True}, "neither a Llama .* nor a Gemma"),
        ({"seq_len_interpolation_factor": 2}, "together are not supported"),
        ({"num_layers": "four"}, "num_layers is 'four' instead of a positive integer"),
        ({"max_position_embeddings": "${.absent}"}, "max_position_embeddings"),
        ({"clever_new_attention": 3}, "unknown fields clever_new_attention.*--ignore-field"),
        ({"tokenizer": "nemo:x"}, "tokenizer is not a group"),
    ],
)
def test_fields_that_are_not_built(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    read_nemo_config(config_file(tmp_path, LLAMA))
    with pytest.raises(UserError, match=message) as caught:
        read_nemo_config(config_file(tmp_path, LLAMA, **changes))
    assert "\n" not in str(caught.value)


def test_fields_that_mean_something_else_when_absent(tmp_path: Path) -> None:
    for name in ("bias", "mcore_gpt", "position_embedding_type"):
        values = {key: value for key, value in LLAMA.items() if key != name}
        with pytest.raises(UserError, match=f"{name} is missing"):
            read_nemo_config(config_file(tmp_path, values))


def test_an_unknown_field_may_be_declared_neutral(tmp_path: Path) -> None:
    path = config_file(tmp_path, LLAMA, my_note=1)
    assert read_nemo_config(path, frozenset({"my_note"})).family == "llama"
    assert not NEUTRAL & ONLY.keys()


def test_linear_rope_scaling(tmp_path: Path) -> None:
    path = config_file(
        tmp_path, LLAMA, scale_positional_embedding=False, seq_len_interpolation_factor=4
    )
    found = read_nemo_config(path).hf_config["rope_scaling"]
    assert found == {"rope_type": "linear", "factor": 4.0}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: !!python/object/apply:os.system ['true']", "cannot be read"),
        ("a: &x [1]\nb: *x", "has aliases"),
        ("[1, 2]", "holds no fields"),
        ("a: [", "cannot be read"),
        ("# " + "x" * MAX_BYTES, "more than"),
    ],
)
def test_yaml_is_plain_data(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "model_config.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        read_nemo_config(path)


def repacked(made: Path, tmp_path: Path, change: Any) -> Path:
    """llama.nemo with something changed in it."""
    inside = tmp_path / "inside"
    with tarfile.open(made / "llama.nemo") as tar:
        tar.extractall(inside, filter="data")
    change(inside)
    archive = tmp_path / "changed.nemo"
    with tarfile.open(archive, "w") as tar:
        tar.add(inside, arcname=".")
    return archive


def refused(archive: Path, message: str, **options: Any) -> None:
    destination = archive.parent / "never" / "out"
    with pytest.raises(UserError, match=message) as caught:
        convert_nemo_to_megatron(archive, destination, **options)
    assert "\n" not in str(caught.value)
    assert list(destination.parent.iterdir()) == []


def test_pickled_weights_are_refused_with_the_command_that_converts(
    made: Path, tmp_path: Path
) -> None:
    def change(inside: Path) -> None:
        (inside / "model_weights" / ".metadata").unlink()
        (inside / "mp_rank_00").mkdir()
        (inside / "mp_rank_00" / "model_weights.ckpt").write_bytes(b"x")

    refused(
        repacked(made, tmp_path, change),
        r"pickled weights \(mp_rank_00/model_weights.ckpt\).*convert_llama_nemo_to_hf.py",
    )


def test_zarr_is_refused(made: Path, tmp_path: Path) -> None:
    def change(inside: Path) -> None:
        (inside / "model_weights" / ".metadata").unlink()
        array = inside / "model_weights" / "model.decoder.final_layernorm.weight"
        array.mkdir()
        (array / ".zarray").write_text("{}")

    refused(repacked(made, tmp_path, change), "in zarr, which is not read here.*nemo_to_hf.py")


def test_layers_that_the_config_does_not_say(made: Path, tmp_path: Path) -> None:
    def change(inside: Path) -> None:
        config_file(inside, LLAMA, num_layers=5)

    refused(repacked(made, tmp_path, change), "has 4 layers, the configuration says 5")


def test_damaged_weights_are_named(made: Path, tmp_path: Path) -> None:
    def change(inside: Path) -> None:
        largest = max((inside / "model_weights").glob("*.distcp"), key=lambda p: p.stat().st_size)
        largest.write_bytes(largest.read_bytes()[:-20_000])

    refused(repacked(made, tmp_path, change), r"is damaged \(__0_\d.distcp")


def test_our_own_archive_is_told_apart(made: Path, tmp_path: Path) -> None:
    megatron = resolve_checkpoint(made / "llama.nemo")
    archive = tmp_path / "own.nemo"
    with tarfile.open(archive, "w") as tar:
        tar.add(megatron, arcname=".")
    (tmp_path / "never").mkdir()
    assert verify(resolve_checkpoint(archive), megatron).same
    convert_nemo_to_megatron(archive, tmp_path / "megatron")
    assert verify(tmp_path / "megatron", megatron).same
    refused(archive, "was written by this program and says all", vocab_size=101)


def escaping(kind: str) -> tarfile.TarInfo:
    member = tarfile.TarInfo({"absolute": "/etc/evil", "climbing": "a/../../evil"}.get(kind, "x"))
    match kind:
        case "symlink" | "hardlink":
            member.type = tarfile.SYMTYPE if kind == "symlink" else tarfile.LNKTYPE
            member.linkname = "/etc/passwd"
        case "device":
            member.type, member.devmajor, member.devminor = tarfile.CHRTYPE, 1, 3
        case "fifo":
            member.type = tarfile.FIFOTYPE
    return member


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("kind", ["absolute", "climbing", "symlink", "hardlink", "device", "fifo"])
def test_members_cannot_escape(tmp_path: Path, kind: str, compress: bool) -> None:
    """Nothing is written, not even the harmless member that comes first."""
    archive = tmp_path / "bad.nemo"
    with tarfile.open(archive, "w:gz" if compress else "w") as tar:
        harmless = tarfile.TarInfo("model_config.yaml")
        harmless.size = 1
        tar.addfile(harmless, io.BytesIO(b"x"))
        tar.addfile(escaping(kind))
    (tmp_path / "never").mkdir()
    refused(archive, "refused")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.nemo", "never"]


@pytest.mark.parametrize("compress", [False, True])
def test_huge_claims_are_refused(tmp_path: Path, compress: bool) -> None:
    """A header that claims a terabyte; and zeros that compress a thousandfold."""
    archive = tmp_path / "bad.nemo"
    with tarfile.open(archive, "w:gz" if compress else "w") as tar:
        member = tarfile.TarInfo("model_weights/x")
        member.size = (100 << 20) if compress else (1 << 40)
        if compress:
            tar.addfile(member, io.BytesIO(bytes(100 << 20)))
        else:
            tar.addfile(member)
    (tmp_path / "never").mkdir()
    refused(archive, "claims to hold|not a readable")
