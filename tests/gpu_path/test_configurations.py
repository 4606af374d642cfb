"""What the project sets in megatron's configurations is accepted there, and read."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import megatron.core
import pytest

CORE = Path(megatron.core.__path__[0])
ANYWHERE = ("",)
READERS = {
    "TransformerConfig": ANYWHERE,
    "DistributedDataParallelConfig": ("distributed", "optimizer"),
    "OptimizerConfig": ("optimizer",),
}
"""Class of configuration -> folders of megatron-core that get one of them."""
DECLARATIONS = (
    "transformer/transformer_config.py",
    "model_parallel_config.py",
    "distributed/distributed_data_parallel_config.py",
    "optimizer/optimizer_config.py",
)
"""They check and derive fields, which is not to use them."""
HARMLESS = {
    # megatron-core's own default; there are no CUDA graphs here.
    "full scope is deprecated. Use empty cuda_graph_modules to capture the whole layer.",
}
CORE_ATTENTION = (
    "If you are using transformer_engine as the transformer implementation, the core_attn"
)


def reads(source: str) -> Iterator[str]:
    """Names that a Python file reads from something called a configuration."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            if _is_config(node.value):
                yield node.attr
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "getattr":
            owner, name = node.args[:2]
            if isinstance(name, ast.Constant) and _is_config(owner):
                yield str(name.value)


def _is_config(node: ast.expr) -> bool:
    return "config" in ast.unparse(node).rpartition(".")[2].lower()


def read_in(folders: Iterable[str]) -> set[str]:
    """Names that megatron-core reads from configurations in its folders."""
    declarations = {CORE / name for name in DECLARATIONS}
    files = {file for folder in folders for file in (CORE / folder).rglob("*.py")}
    return {name for file in files - declarations for name in reads(file.read_text())}


def fields(cluster: dict[str, Any], kind: str, what: str) -> set[str]:
    """Fields of a class of configuration that were `set` or `read`, over all that was rehearsed."""
    ranks = [rank["fields"] for world in cluster["worlds"].values() for rank in world]
    everything = [*ranks, cluster["configurations"]["fields"]]
    return {name for one in everything for name in one[kind][what]}


@pytest.mark.parametrize("kind", READERS)
def test_megatron_has_a_reader_for_every_field(kind: str, cluster: dict[str, Any]) -> None:
    given = fields(cluster, kind, "set")
    assert len(given) > 2
    assert given - read_in(READERS[kind]) == set()


@pytest.mark.parametrize("kind", READERS)
def test_some_run_reads_every_field(kind: str, cluster: dict[str, Any]) -> None:
    """That megatron has a reader is not enough: it has to be in a part that is built here."""
    unread = fields(cluster, kind, "set") - fields(cluster, kind, "read")
    assert unread == set()


def test_megatron_has_nothing_against_what_the_checks_let_through(cluster: dict[str, Any]) -> None:
    """Precision x mesh x layers x kernels x recomputation x families."""
    found = cluster["configurations"]
    assert {precision for precision, count in found["constructed"].items() if count > 90} == {
        "fp32", "bf16", "fp8_tensorwise", "fp8_blockwise", "fp8_mxfp8"
    }  # fmt: skip
    said = [one for one in found["said"] if one["line"] not in HARMLESS]
    assert [one for one in said if not _recomputes_scores(one)] == []


def _recomputes_scores(said: dict[str, Any]) -> bool:
    """Megatron warns of recomputing attention whose scores are not kept; here they are."""
    line: str = said["line"]
    keeps: bool = (
        said["layers"] == "local"
        or said["precision"] == "fp32"
        or said["attention_backend"] == "unfused"
        or said["model"] == "gemma2"
    )
    return keeps and line.startswith(CORE_ATTENTION)


def test_only_what_is_read_from_a_configuration_counts() -> None:
    source = """
def use(config, model):
    config.written = 1
    model.other = self.ddp_config.bucket
    return config.read, model.width, getattr(transformer_config, "asked", None), self.config.shape
"""
    assert set(reads(source)) == {"bucket", "read", "asked", "shape"}
