"""The ledger of labels as a training run reads and writes it: `label.ledger`.

The main rank opens the ledger and reads the texts of the pairs; the others hold what it tells them,
so that all decide alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from nemo_gdpo.config.schema import RunConfig
from nemo_gdpo.control import from_main_rank
from nemo_gdpo.data.dataset import PreferenceDataset
from nemo_gdpo.data.keyed import key_of
from nemo_gdpo.data.prepared import is_prepared
from nemo_gdpo.data.readers import read_pairs
from nemo_gdpo.data.types import RawPair
from nemo_gdpo.errors import UserError
from nemo_gdpo.io.files import digest_of
from nemo_gdpo.labeling.events import Identity, Question
from nemo_gdpo.labeling.ledger import Ledger
from nemo_gdpo.labeling.pairs import data_fingerprint, shown
from nemo_gdpo.labeling.votes import labels
from nemo_gdpo.objectives.types import UNKNOWN

READING, ASKING = "reading the labels", "asking for labels"
"""Stages, as errors name them."""


class LiveLabels:
    """Answers to the pairs of a run, by their index, on every rank.

    Args:
        config: with `label.ledger`.
        data: the training pairs.
        weights: fingerprint of what training starts from.
        is_main: this is the rank that opens the ledger.

    Raises:
        UserError: on every rank, when the ledger is of another data set or model, or the texts of
            the pairs cannot be read.
    """

    def __init__(
        self, config: RunConfig, data: PreferenceDataset, weights: str, *, is_main: bool
    ) -> None:
        self._path = str(config.label.ledger)
        self._budget = config.label.budget
        self._seed = config.label.seed
        self._sources = config.label.sources
        self._model = weights
        self._step = 0
        self._pairs: list[RawPair] = []
        self._keys: list[str] = []
        self._signs = np.full(len(data), UNKNOWN, dtype=np.int8)
        from_main_rank(READING, lambda: self._open(config, data) if is_main else None)

    def _open(self, config: RunConfig, data: PreferenceDataset) -> None:
        section, path = config.data, str(config.data.train_path)
        if is_prepared(path):
            raise UserError(
                f"data.train_path={path}: is a prepared directory, which has tokens and no texts; "
                "with label.ledger give the file that it was made of"
            )
        of_id = {
            pair.id: pair
            for pair in read_pairs(
                path, format=section.reader_format, split=section.split,
                on_bad_pair=section.on_bad_pair,
            )
        }  # fmt: skip
        keys = {name: key_of(pair) for name, pair in of_id.items()}
        identity = Identity(data_fingerprint(keys.values()), len(set(keys.values())), path)
        with Ledger(self._path, make=True) as ledger:
            ledger.claim(identity, self._model)
        self._pairs = [of_id[name] for name in data.arrays.ids]
        self._keys = [keys[name] for name in data.arrays.ids]

    def at_step(self, step: int) -> None:
        """Updates that were made: part of the model's name in what is asked from now on."""
        self._step = step

    def refresh(self) -> None:
        """Read the answers that are there. Collective."""
        found = from_main_rank(READING, self._answers)
        self._signs = np.frombuffer(found, dtype=np.int8)

    def _answers(self) -> bytes:
        with Ledger(self._path) as ledger:
            known = labels(ledger.state(), sources=self._sources)
        signs = np.full(len(self._keys), UNKNOWN, dtype=np.int8)
        for index, key in enumerate(self._keys):
            sign = known[key].sign(self._pairs[index].chosen) if key in known else None
            if sign is not None:
                signs[index] = sign
        return signs.tobytes()

    def is_known(self, index: int) -> bool:
        """Whether there is an answer for a pair."""
        return bool(self._signs[index] != UNKNOWN)

    def of(self, indices: Sequence[int]) -> torch.Tensor:
        """What people say of pairs, see `PairTargets.oracle_N`; int8."""
        return torch.from_numpy(self._signs[list(indices)].copy())

    def ask(self, margins: Mapping[int, float]) -> set[int]:
        """Ask about pairs; those that the ledger now asks about, as the budget allows. Collective.

        Args:
            margins: index -> beta h of the chosen over the rejected response.
        """
        return from_main_rank(ASKING, lambda: self._ask(margins))

    def _ask(self, margins: Mapping[int, float]) -> set[int]:
        model = digest_of({"weights": self._model, "step": self._step})
        questions = [self._question(index, margin, model) for index, margin in margins.items()]
        with Ledger(self._path) as ledger:
            state = ledger.state()
            limit = state.budget if self._budget is None else self._budget
            free = None if limit is None else limit - len(state.asked)
            new = [question for question in questions if question.pair not in state.asked]
            count = len(new) if free is None else max(0, min(free, len(new)))
            if count:
                ledger.ask(new, count, budget=self._budget)
            asked = ledger.state().asked
        return {index for index in margins if self._keys[index] in asked}

    def _question(self, index: int, margin: float, model: str) -> Question:
        pair = self._pairs[index]
        seen = shown(pair.prompt, pair.chosen, pair.rejected, self._seed)
        return Question(
            pair=seen.key,
            id=pair.id,
            prompt=seen.prompt,
            left=seen.left,
            right=seen.right,
            order_seed=self._seed,
            margin=margin if seen.left == pair.chosen else -margin,
            model=model,
        )

    def described(self, waiting: int, *, used_up: bool) -> str:
        """What to do when a run waits for this many answers."""
        if used_up:
            return (
                f"the budget of {self._path} is used up, and {waiting} of the pairs that it asks "
                "about have no answer; raise label.budget, or set trainer.max_steps to end here"
            )
        if not waiting:
            return "no pair is left"
        name = Path(self._path).name
        return (
            f"{waiting} pairs wait for an answer in {self._path} (nemo-gdpo label export "
            f"label.ledger={name}, then label import)"
        )
