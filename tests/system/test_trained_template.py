"""What was trained with is what is exported: checkpoint, Hugging Face directory and archive."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from nemo_gdpo.errors import EXIT_DONE
from tests.support.commands import cli, common, steps
from tests.support.data import pairs, write_jsonl
from tests.support.models import save_model
from tests.support.tokenizers import LLAMA3

pytestmark = pytest.mark.engine


def test_the_template_of_the_training_is_the_one_that_is_exported(tmp_path: Path) -> None:
    model = save_model(tmp_path / "model")
    data = write_jsonl(tmp_path / "pairs.jsonl", pairs(8))
    trained = tmp_path / "trained.jinja"
    # The end token of the model's own, other words around it.
    text = LLAMA3.replace("<|end_header_id|>\n\n", "<|end_header_id|>:\n")
    assert text != LLAMA3
    trained.write_text(text)
    output = tmp_path / "run"
    overrides = common(
        model, data, output, "objective=dpo", *steps(2), f"data.chat_template={trained}"
    )
    done = cli("train", *overrides, "export_hf=true", "export_nemo=true")
    assert done.status == EXIT_DONE, done.err
    (checkpoint,) = (output / "checkpoints").glob("step_*")
    for assets in (checkpoint / "hf_assets", output / "hf"):
        assert (assets / "chat_template.jinja").read_text() == text
        assert AutoTokenizer.from_pretrained(assets).chat_template == text
    (archive,) = output.glob("*.nemo")
    with tarfile.open(archive) as tar:
        names = [n for n in tar.getnames() if n.endswith("hf_assets/chat_template.jinja")]
        member = tar.extractfile(names[0])
        assert member is not None
        assert member.read().decode() == text
    # A conversion of the checkpoint, by the run's directory, has it too.
    for source, name in ((output, "a"), (output / "checkpoints" / "latest", "b")):
        converted = cli("convert", "megatron-to-hf", str(source), str(tmp_path / name))
        assert converted.status == EXIT_DONE, converted.err
        assert (tmp_path / name / "chat_template.jinja").read_text() == text
