"""The demo's preference pairs: which of two review snippets did people rate higher?

How pairs are made, all from one seed:

1. Snippets with the same text (but for case and spaces) count once; the first stays.
2. Each snippet goes to training or validation by a hash of seed and text, before any pairing, so
   that the two never share a snippet.
3. Within a split, snippets are shuffled and paired, each used at most once: a liked one
   (mean >= chosen_min) with a disliked one (mean <= rejected_max), or, without thresholds,
   neighbours.
4. The higher mean is chosen. Equal means are ties, dropped and counted; so are gaps below min_gap.
5. Each pair gets one of the fixed instructions at random.

How many raters agree: each of a pair's raters saw one of its two snippets. A rater of the chosen
one agrees by rating it above the midpoint of the two means, a rater of the rejected one by rating
it below. With means on both sides of 0 that is about "liked the one, disliked the other".
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from examples.film_reviews.snippets import Snippet, read_snippets
from nemo_gdpo.errors import UserError
from nemo_gdpo.io.files import write_file

INSTRUCTIONS = (
    "Write one sentence of a film review.",
    "Give me a single sentence from a review of a movie.",
    "You are a film critic. Write one sentence about the film you saw last night.",
    "Sum up a movie in one sentence, as a newspaper review would.",
    "Write the closing sentence of a film review.",
    "Describe in one sentence what a new film is like.",
    "Write a one-sentence review of a film of your choice.",
    "In one sentence, tell readers what you think of a movie.",
)
"""None of them asks for praise or blame: the preference is what the pairs teach."""

SPLITS = ("train", "validation")


@dataclass
class PairingStats:
    """Counts of one split."""

    snippets: int = 0
    ties_dropped: int = 0
    below_min_gap: int = 0
    pairs_available: int = 0
    pairs: int = 0
    mean_chosen_score: float = 0.0
    mean_rejected_score: float = 0.0
    mean_agreement: float = 0.0
    """Mean share of raters who agree, over the pairs written."""


@dataclass(frozen=True)
class Pairing:
    """Rules by which pairs are made; the defaults are the demo's.

    Raises:
        UserError: a value is out of range.
    """

    seed: int = 1234
    num_train: int | None = 240
    """Pairs to write; None is all there are."""
    num_validation: int | None = 16
    """Pairs to write; None is all there are."""
    validation_fraction: float = 0.1
    """Share of the snippets that only validation sees."""
    chosen_min: float | None = 1.0
    """Least mean rating of a chosen snippet; None together with `rejected_max`: no thresholds."""
    rejected_max: float | None = -0.5
    """Greatest mean rating of a rejected snippet."""
    min_gap: float = 1.5
    """Least difference of the two mean ratings."""

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise UserError(f"seed={self.seed}: it must not be negative; choose 0 or more")
        for name, count in (
            ("num_train", self.num_train),
            ("num_validation", self.num_validation),
        ):
            if count is not None and count < 1:
                raise UserError(f"{name}={count}: not a number of pairs; give 1 or more, or none")
        fraction = self.validation_fraction
        if not 0.0 < fraction < 1.0:
            raise UserError(
                f"validation_fraction={fraction}: not a share of the snippets; choose a number "
                "between 0 and 1"
            )
        self._check_thresholds(self.chosen_min, self.rejected_max)
        if not 0.0 <= self.min_gap <= 8.0:
            raise UserError(
                f"min_gap={self.min_gap}: ratings go from -4 to 4; it must lie in 0 to 8"
            )

    @staticmethod
    def _check_thresholds(chosen_min: float | None, rejected_max: float | None) -> None:
        for name, rating in (("chosen_min", chosen_min), ("rejected_max", rejected_max)):
            if rating is not None and not -4.0 <= rating <= 4.0:
                raise UserError(f"{name}={rating}: ratings go from -4 to 4; choose one of those")
        if (chosen_min is None) != (rejected_max is None):
            raise UserError("chosen_min and rejected_max: only one is set; give both or neither")
        if chosen_min is not None and rejected_max is not None and chosen_min <= rejected_max:
            raise UserError(
                f"chosen_min={chosen_min}: it must be greater than rejected_max={rejected_max}; "
                "raise it, or lower rejected_max"
            )


def write_pairs(sdist_path: str | Path, out_dir: str | Path, pairing: Pairing) -> dict[str, Any]:
    """Write `train.jsonl`, `validation.jsonl`, `prompts.jsonl` and `stats.json`; return the stats.

    Rows have TRL's columns (prompt, chosen, rejected as messages, chosen_score, rejected_score:
    mean ratings from -4 to 4) and `raters_agree`, `raters_total`, `snippets`.

    Raises:
        UserError: the package is missing or damaged, or fewer pairs exist than asked for.
    """
    seed = pairing.seed
    snippets, duplicates = _without_duplicates(read_snippets(sdist_path))
    rows_of: dict[str, list[dict[str, Any]]] = {}
    stats: dict[str, Any] = {
        "source": "vaderSentiment 3.3.2, Hutto & Gilbert (2014)",
        "seed": seed,
        "chosen_min": pairing.chosen_min,
        "rejected_max": pairing.rejected_max,
        "min_gap": pairing.min_gap,
        "validation_fraction": pairing.validation_fraction,
        "snippets": len(snippets),
        "duplicates_dropped": duplicates,
    }
    limits = (pairing.num_train, pairing.num_validation)
    for number, (split, wanted) in enumerate(zip(SPLITS, limits, strict=True)):
        members = [
            s
            for s in snippets
            if _is_validation(s.text, seed, pairing.validation_fraction) == (split == "validation")
        ]
        counts = PairingStats(snippets=len(members))
        # Separate streams: asking for more training pairs leaves the validation pairs alone.
        random = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, number])))
        couples = make_couples(members, random, pairing, counts)
        if wanted is not None and wanted > len(couples):
            raise UserError(
                f"{wanted} {split} pairs asked for, {len(couples)} exist with these thresholds; "
                "ask for fewer, loosen the thresholds or change validation_fraction"
            )
        couples = couples if wanted is None else couples[:wanted]
        rows_of[split] = [
            _row(f"{split}-{index}", couple, INSTRUCTIONS[int(random.integers(len(INSTRUCTIONS)))])
            for index, couple in enumerate(couples)
        ]
        _summarize(counts, rows_of[split])
        stats[split] = asdict(counts)
    prompts = [
        {"id": f"prompt-{index}", "prompt": _asked(text)} for index, text in enumerate(INSTRUCTIONS)
    ]
    directory = Path(out_dir)
    directory.mkdir(parents=True, exist_ok=True)
    for split in SPLITS:
        write_atomically(directory / f"{split}.jsonl", _lines(rows_of[split]))
    write_atomically(directory / "prompts.jsonl", _lines(prompts))
    write_atomically(directory / "stats.json", json.dumps(stats, indent=2) + "\n")
    return stats


def make_couples(
    snippets: Sequence[Snippet],
    random: np.random.Generator,
    pairing: Pairing,
    counts: PairingStats,
) -> list[tuple[Snippet, Snippet]]:
    """(chosen, rejected) couples in shuffled order; ties and small gaps are added to `counts`."""
    group = [snippets[i] for i in random.permutation(len(snippets))]
    if pairing.chosen_min is None or pairing.rejected_max is None:
        candidates = list(zip(group[::2], group[1::2], strict=False))
    else:
        liked = [snippet for snippet in group if snippet.mean >= pairing.chosen_min]
        disliked = [snippet for snippet in group if snippet.mean <= pairing.rejected_max]
        candidates = list(zip(liked, disliked, strict=False))
    couples: list[tuple[Snippet, Snippet]] = []
    for first, second in candidates:
        # Ratings are whole numbers: their exact means decide what is a tie.
        gap = first.exact_mean - second.exact_mean
        if gap == 0:
            counts.ties_dropped += 1
        elif abs(gap) < pairing.min_gap:
            counts.below_min_gap += 1
        else:
            couples.append((first, second) if gap > 0 else (second, first))
    counts.pairs_available = len(couples)
    return couples


def _key(text: str) -> str:
    return " ".join(text.casefold().split())


def _without_duplicates(snippets: Sequence[Snippet]) -> tuple[list[Snippet], int]:
    first: dict[str, Snippet] = {}
    for snippet in snippets:
        first.setdefault(_key(snippet.text), snippet)
    return list(first.values()), len(snippets) - len(first)


def _is_validation(text: str, seed: int, fraction: float) -> bool:
    digest = hashlib.sha256(f"{seed}\n{_key(text)}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < fraction * 2**64


def _asked(instruction: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": instruction}]


def _row(name: str, couple: tuple[Snippet, Snippet], instruction: str) -> dict[str, Any]:
    chosen, rejected = couple
    midpoint = (chosen.exact_mean + rejected.exact_mean) / 2
    above = sum(rating > midpoint for rating in chosen.ratings)
    below = sum(rating < midpoint for rating in rejected.ratings)
    return {
        "id": name,
        "prompt": _asked(instruction),
        "chosen": [{"role": "assistant", "content": chosen.text}],
        "rejected": [{"role": "assistant", "content": rejected.text}],
        "chosen_score": chosen.mean,
        "rejected_score": rejected.mean,
        "raters_agree": above + below,
        "raters_total": len(chosen.ratings) + len(rejected.ratings),
        "snippets": [chosen.number, rejected.number],
    }


def _summarize(counts: PairingStats, rows: Sequence[dict[str, Any]]) -> None:
    counts.pairs = len(rows)
    if rows:
        counts.mean_chosen_score = sum(row["chosen_score"] for row in rows) / len(rows)
        counts.mean_rejected_score = sum(row["rejected_score"] for row in rows) / len(rows)
        counts.mean_agreement = sum(
            row["raters_agree"] / row["raters_total"] for row in rows
        ) / len(rows)


def _lines(rows: Sequence[dict[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def write_atomically(path: Path, text: str) -> None:
    """Write `path` completely or not at all.

    Raises:
        UserError: it cannot be written.
    """
    try:
        write_file(path, text)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror}); free space or choose another place"
        ) from None
