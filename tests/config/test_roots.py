"""The roots beside training: each file holds the keys of its schema, and mistakes are suggested."""

from __future__ import annotations

from typing import Any

import pytest

from nemo_gdpo.config.base import fields_of, section_of
from nemo_gdpo.config.composition import compose, config_dir, group_options
from nemo_gdpo.config.downstream import ALPACA_EVAL, LM_EVAL, MT_BENCH
from nemo_gdpo.config.evaluation import EVALUATE
from nemo_gdpo.config.generation import GENERATE
from nemo_gdpo.config.help import keys, render_help
from nemo_gdpo.config.root import Root
from nemo_gdpo.config.schema import TRAIN
from nemo_gdpo.errors import UserError

ROOTS: list[Root[Any]] = [GENERATE, EVALUATE]
ALL: list[Root[Any]] = [TRAIN, *ROOTS, LM_EVAL, ALPACA_EVAL, MT_BENCH]
CHOICES = [
    (root, f"{group}={option}")
    for root in ROOTS
    for group, options in group_options(config_dir(), root).items()
    for option in options
]


def _leaves(node: object, prefix: str = "") -> set[str]:
    if not isinstance(node, dict):
        return {prefix[:-1]}
    return {leaf for key, value in node.items() for leaf in _leaves(value, f"{prefix}{key}.")}


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NEMO_GDPO_MODEL", raising=False)


@pytest.mark.parametrize("root", ALL, ids=lambda root: root.name)
def test_nothing_given_is_every_key_at_its_default(root: Root[Any]) -> None:
    plain = compose([], root=root).plain
    if root is not TRAIN:
        assert _leaves(plain) == root.keys()
    assert root.parse(plain) == root.schema()


@pytest.mark.parametrize(("root", "choice"), CHOICES, ids=lambda value: str(value)[:40])
def test_every_choice_composes_and_parses(root: Root[Any], choice: str) -> None:
    root.parse(compose([choice], root=root).plain)


def test_groups_belong_to_their_roots() -> None:
    assert set(group_options(config_dir(), GENERATE)) == {"constraints", "generation"}
    assert not {"constraints", "generation", "evaluation"} & set(group_options(config_dir(), TRAIN))
    assert "objective" in group_options(config_dir(), TRAIN)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("generation.temprature=1", r"did you mean generation.temperature\?"),
        ("seed=1", r"use generation.seed"),
        ("optim.lr=1", "optim.lr: is not a key of the configuration; correct"),
        ("generation.n=4", "use generation.num_samples"),
        ("max_new_tokens=4", "use generation.max_tokens"),
        ("objective=gdpo", "objective: is not a key"),
        ("model=default", "model: is a section, not a value"),
        ("generation.server.token=x", "looks like a credential"),
    ],
)
def test_mistakes_get_one_line_with_a_suggestion(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        compose([override], root=GENERATE)
    assert "\n" not in str(caught.value)


def test_numbers_stay_strict_inside_lists() -> None:
    for text in ("generation.temperature=['1.0']", "generation.top_k=[true]"):
        with pytest.raises(UserError, match=r"is not allowed: input should be a valid"):
            GENERATE.parse(compose([text], root=GENERATE).plain)


def _undocumented(section: type[Any], prefix: str = "") -> list[str]:
    found = []
    for name, field in fields_of(section).items():
        inner = section_of(field)
        if inner is not None:
            found += _undocumented(inner, f"{prefix}{name}.")
        elif not field.description:
            found.append(f"{prefix}{name}")
    return found


@pytest.mark.parametrize("root", ALL, ids=lambda root: root.name)
def test_every_key_has_its_help(root: Root[Any]) -> None:
    sections = [root.schema, *root.sections.values()]
    found = [key for section in sections for key in _undocumented(section)]
    assert set(found) <= {"name", "objective"}  # a section's own tag


@pytest.mark.parametrize("root", ALL, ids=lambda root: root.name)
def test_help_shows_every_key_once_with_its_default(root: Root[Any]) -> None:
    text, listed = render_help(root), keys(root)
    tag = set() if root.choice is None else {f"{root.choice}.name"}
    assert {key.name for key in listed} == root.keys() - tag
    for key in listed:
        assert f"  {key.name}={key.default}  ({key.kind}" in text
        assert key.kind != "value" or key.name == "evaluation.rewards", key
    assert len({(key.name, key.owners) for key in listed}) == len(listed)


def test_types_and_ranges_in_words() -> None:
    shown = {(key.name, *key.owners): (key.kind, key.default) for key in keys(TRAIN)}
    assert shown["optim.lr",] == ("number > 0", "5e-07")
    assert shown["objective.label_smoothing", "dpo"] == ("number >= 0 and < 0.5", "0")
    assert shown["objective.balance", "gdpo"] == ("db | subtb | tb", "tb")
    assert shown["trainer.max_steps",] == ("integer >= 1 or null", "null")
    assert shown["optim.betas",] == ("list of number >= 0 and < 1", "[0.9, 0.95]")
    assert shown["data.packing",] == ("true or false", "true")
    assert shown["output_dir",] == ("text", "runs/${objective.name}")
    assert shown["model.restore_from_path",] == (
        "text or null",
        "${oc.env:NEMO_GDPO_MODEL,null}",
    )
