"""The configuration of each stage, worked out of that of the rounds: what its YAML file holds."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_gdpo.config.base import Section
from nemo_gdpo.config.constraints import ConstraintsConfig
from nemo_gdpo.config.generation import GenerateConfig, PromptsConfig, SampledModelConfig
from nemo_gdpo.config.objective import GFlowNetSettings
from nemo_gdpo.config.pairs import PairRules, PairsConfig, PairsSection
from nemo_gdpo.config.rounds import (
    ENCODER,
    GroupsConfig,
    GroupsSection,
    RoundsConfig,
    ScoreConfig,
    ScoreSection,
    ScoringConfig,
)
from nemo_gdpo.config.schema import RunConfig
from nemo_gdpo.generation.manifest import read_manifest
from nemo_gdpo.rounds.groups import GROUPS
from nemo_gdpo.rounds.plan import Plan, Stage, round_directory
from nemo_gdpo.rounds.score import SCORES

PROMPTS = "prompts.jsonl"
PAIRS = "pairs.jsonl"
VERBS = {"generate": ["generate"], "score": ["rounds", "score"], "train": ["train"]}


@dataclass(frozen=True)
class Settings:
    """Configurations and places of the stages of one run."""

    config: RoundsConfig

    @property
    def output(self) -> Path:
        return Path(self.config.output_dir)

    @property
    def plan(self) -> Plan:
        return Plan(self.config.rounds.number, self.config.rounds.staleness)

    @property
    def makes_groups(self) -> bool:
        """Whether training reads groups, and not pairs."""
        return isinstance(self.config.objective, GFlowNetSettings)

    def verb(self, stage: Stage) -> list[str]:
        """The verb that carries a stage out."""
        if stage.kind == "data":
            return ["rounds", "groups"] if self.makes_groups else ["pairs"]
        return VERBS[stage.kind]

    # --- places ---------------------------------------------------------------------------------

    def place(self, stage: Stage) -> Path:
        """`output_dir` of a stage."""
        name = {"generate": "samples", "score": "scored"}.get(stage.kind, stage.kind)
        return round_directory(self.output, stage.round) / name

    def file(self, stage: Stage) -> Path:
        """Its configuration."""
        return round_directory(self.output, stage.round) / f"{stage.kind}.yaml"

    def prompts(self, number: int) -> Path:
        """A round's prompts."""
        return round_directory(self.output, number) / PROMPTS

    def pairs(self, number: int) -> Path:
        """What a round's training reads."""
        name = GROUPS if self.makes_groups else PAIRS
        return self.place(Stage(number, "data")) / name

    # --- configurations -------------------------------------------------------------------------

    def of(self, stage: Stage) -> Section:
        """The configuration of a stage. Those before it that it needs are done."""
        if stage.kind == "generate":
            return self.generate(stage.round)
        if stage.kind == "score":
            return self.score(stage.round)
        if stage.kind == "data":
            return self.groups(stage.round) if self.makes_groups else self._pairs(stage.round)
        return self.train(stage.round)

    def generate(self, number: int) -> GenerateConfig:
        """Sampling: from an export, or from the first model with the adapter of a round."""
        config, source = self.config, self.plan.sampled_from(number)
        first, adapter = config.model.restore_from_path, None
        if self.uses_adapter and config.generation.backend == "vllm":
            adapter = self._adapter(source)
        elif source:
            first = str(self.place(Stage(source, "train")) / "hf")
        generation = config.generation
        asked = {name: getattr(config.constraints, name) for name in ConstraintsConfig.model_fields}
        return GenerateConfig(
            output_dir=str(self.place(Stage(number, "generate"))),
            model=SampledModelConfig(restore_from_path=first, adapter_path=adapter),
            data=PromptsConfig(
                prompts_path=str(self.prompts(number)),
                chat_template=config.data.chat_template,
                date=self.date(),
            ),
            # Another seed each round: a model that has hardly moved would say the same again.
            generation=generation.model_copy(update={"seed": generation.seed + number - 1}),
            constraints=ConstraintsConfig(**asked),
        )

    def score(self, number: int) -> ScoreConfig:
        """Scores and numbers."""
        nats = float(self.config.objective.beta) if self.makes_groups else 1.0  # type: ignore[union-attr]
        section = ScoreSection(
            **self._scoring(),
            samples=str(self.place(Stage(number, "generate"))),
            round=number,
            staleness=self.plan.staleness_of(number),
            nats=nats,
            cache_dir=self._cache(),
        )
        output = str(self.place(Stage(number, "score")))
        return ScoreConfig(output_dir=output, score=section, constraints=self.config.constraints)

    def groups(self, number: int) -> GroupsConfig:
        """Groups of answers, from this round's and, with a replay, from earlier ones'."""
        rounds, objective = self.config.rounds, self.config.objective
        assert isinstance(objective, GFlowNetSettings) and self.config.data.group_size is not None
        first = 1 if rounds.replay.size else number
        section = GroupsSection(
            scored=tuple(str(self.place(Stage(one, "score"))) for one in range(first, number + 1)),
            round=number,
            size=self.config.data.group_size,
            beta=objective.beta,
            replay=rounds.replay,
            encoder=rounds.encoder or ENCODER,
            device=rounds.device,
            batch_tokens=rounds.batch_tokens,
            cache_dir=self._cache(),
        )
        output = str(self.place(Stage(number, "data")))
        return GroupsConfig(seed=self.config.seed, output_dir=output, groups=section)

    def _pairs(self, number: int) -> PairsConfig:
        rounds, rules = self.config.rounds, self.config.pairs
        section = PairsSection(
            **{name: getattr(rules, name) for name in PairRules.model_fields},
            generations=str(self.place(Stage(number, "generate"))),
            scores_path=str(self.place(Stage(number, "score")) / SCORES),
            encoder=rounds.encoder or ENCODER,
            device=rounds.device,
            batch_tokens=rounds.batch_tokens,
        )
        output = str(self.place(Stage(number, "data")))
        return PairsConfig(seed=self.config.seed, output_dir=output, pairs=section)

    def train(self, number: int) -> RunConfig:
        """Training of a round: from the model before, against the first one or that."""
        config = self.config
        own = {name: getattr(config, name) for name in RunConfig.model_fields}
        return RunConfig(
            **{
                **own,
                "output_dir": str(self.place(Stage(number, "train"))),
                "objective": self._objective(number),
                "data": self._data(number),
                "label": config.label.model_copy(update={"ledger": self._ledger(number)}),
                **self._models(number),
            }
        )

    @property
    def uses_adapter(self) -> bool:
        """Whether training is of an adapter alone."""
        return self.config.lora.rank is not None

    def _models(self, number: int) -> dict[str, Any]:
        config = self.config
        first = config.model.restore_from_path
        is_first = config.rounds.reference == "first" and number > 1
        found: dict[str, Any] = {"reference_model": first if is_first else None}
        if config.reference == "cache":
            found["reference_cache_dir"] = config.reference_cache_dir or str(
                self.output / "reference"
            )
        if self.uses_adapter:
            adapter = self._adapter(number - 1)
            found["lora"] = config.lora.model_copy(update={"restore_from_path": adapter})
        elif number > 1:
            start = str(self.place(Stage(number - 1, "train")) / "hf")
            found["model"] = config.model.model_copy(update={"restore_from_path": start})
        return found

    def _adapter(self, number: int) -> str | None:
        """The adapter that a round ended with; 0: the one that the first starts from, if any."""
        if number == 0:
            return self.config.lora.restore_from_path
        return str(self.place(Stage(number, "train")) / "peft")

    def _data(self, number: int) -> Section:
        groups = {"format": "groups"} if self.makes_groups else {}
        path = str(self.pairs(number))
        changes = {"train_path": path, "date": self.date(), **groups}
        return self.config.data.model_copy(update=changes)

    def _objective(self, number: int) -> Any:
        objective, end = self.config.objective, self.config.rounds.reward_temperature_end
        if not isinstance(objective, GFlowNetSettings) or end is None:
            return objective
        begin, steps = objective.reward_temperature, self.config.rounds.number - 1
        now = begin + (end - begin) * (number - 1) / steps
        return dataclasses.replace(objective, reward_temperature=now)

    def _ledger(self, number: int) -> str | None:
        """A ledger is of one data set, so each round has its own beside the one that is named."""
        ledger = self.config.label.ledger
        if ledger is None:
            return None
        path = Path(ledger)
        return str(path.with_name(f"{path.stem}-round_{number:03d}{path.suffix}"))

    def date(self) -> str | None:
        """The day that prompts bear: of the first samples, where their template has a clock."""
        if self.config.data.date is not None:
            return self.config.data.date
        written = read_manifest(self.place(Stage(1, "generate"))) or {}
        found = written.get("settings", {}).get("date")
        return found if isinstance(found, str) else None

    def _scoring(self) -> dict[str, Any]:
        return {name: getattr(self.config.rounds, name) for name in ScoringConfig.model_fields}

    def _cache(self) -> str:
        return str(self.output / "cache")
