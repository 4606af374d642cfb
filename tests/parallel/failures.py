"""The table of failures: a stage of a run, and what is made to fail in it on one of two ranks."""

from __future__ import annotations

from dataclasses import dataclass

from tests.support.tiers import EVERYTHING

PACKAGE = "nemo_gdpo"


@dataclass(frozen=True)
class Failing:
    """One function that fails on one rank."""

    stage: str
    """As `control` names it."""
    place: str
    """`module:name` below the package; the name may be that of a method."""
    kind: str = "user"
    """`user` mistake, `disk` or `bug`."""
    main_only: bool = False
    """Rank 0 acts for all, so that it alone can fail."""
    after: bool = False
    """Fail once the function has done its work: it has collectives, which the others need."""
    call: int = 1
    """Which call of it fails."""
    settings: tuple[str, ...] = ()
    task: str = "train_plain"
    resumes: bool = False
    """Begin with a copy of a finished run."""
    said: str | None = None
    """What the message says instead of the stage."""

    @property
    def status(self) -> int:
        """Exit status: a wrong input is 2, a failing disk is nobody's mistake."""
        return 2 if self.kind == "user" and self.said is None else 1

    @property
    def key(self) -> str:
        return f"{self.stage}: {self.place}"

    @property
    def victims(self) -> tuple[int, ...]:
        """The ranks that it fails on, one after the other. `make test` has rank 0 where that acts
        for all, and rank 1 elsewhere."""
        if self.main_only:
            return (0,)
        return (0, 1) if EVERYTHING else (1,)


CONVERTED = ("model.cache_converted=true",)
RESIDENT = ("reference=resident",)
ADAPTERS = ("lora.rank=4",)
STARTED = (*ADAPTERS, "lora.restore_from_path={folder}/adapters/peft")
"""From the adapter of a run before."""
CACHE, SAVED = "the reference cache", "the previous checkpoint is untouched"
NEMO = ("export_nemo=true",)
ARCHIVE = "model.nemo could not be written"

FAILURES: tuple[Failing, ...] = (
    Failing("comparing configurations", "training.resume:plain_data"),
    Failing("building the mesh", "platform.cpu:CpuPlatform.manual_seed"),
    Failing("locking output_dir", "training.record:hold", main_only=True),
    Failing("looking at the pairs", "training.run:refuse_bad_pairs", main_only=True),
    Failing("finding the model", "training.model_source:open_loadable", main_only=True),
    Failing("finding the model", "training.model_source:fingerprint_of", "disk", main_only=True),
    Failing("opening the model", "training.model_source:HuggingFaceSource"),
    Failing("opening the model", "training.model_source:_open_here", settings=CONVERTED),
    Failing(
        "looking for another run's checkpoints",
        "training.resume:newest_trainer_state",
        main_only=True,
    ),
    Failing("reading the metrics", "training.run:refuse_unreadable_metrics", main_only=True),
    Failing("comparing the data", "training.resume:Earlier.refuse_other_data", main_only=True),
    Failing("looking for another run's reference", "training.run:refuse_foreign", main_only=True),
    Failing(
        "writing config.yaml",
        "training.record:config_yaml",
        "disk",
        main_only=True,
        said="config.yaml could not be written",
    ),
    Failing("tokenising train", "training.datasets:build_split", main_only=True),
    Failing("writing the tokens of train", "training.datasets:save_prepared", "bug",
            main_only=True),
    Failing("writing the tokens of validation", "training.datasets:save_prepared", "bug",
            main_only=True, call=2),
    Failing("tokenising validation", "training.datasets:build_split", main_only=True, call=2),
    Failing("reading the tokens of train", "training.datasets:load_prepared"),
    Failing("reading the tokens of train", "training.datasets:wait_for_files", "disk"),
    Failing("reading the tokens of validation", "training.datasets:load_prepared", call=2),
    Failing("counting the pairs", "training.record:PreferenceSampler.global_batch"),
    Failing("building the model", "training.run:PreferenceModel", "bug"),
    Failing("reading the weights", "training.model_source:load_hf_into_model"),
    Failing("reading the weights", "models.weights:check_dist_checkpoint", settings=CONVERTED),
    Failing("reading the weights", "models.weights:fill_weights", "disk", settings=CONVERTED),
    Failing("quantising the base", "training.run:PreferenceModel.quantise_base", "bug"),
    Failing("building NeMo's model", "nemo.model:allow_our_targets", "bug", task="train"),
    Failing("copying the reference", "training.run:PreferenceModel.attach_resident_reference",
            "bug", settings=RESIDENT),
    Failing("preparing the model", "training.run:PreferenceModel.prepare_for_inference", "bug"),
    Failing("preparing the model", "training.run:PreferenceModel.prepare_for_training", "bug"),
    Failing("looking for the reference cache", "training.reference:sizes_of", "disk",
            main_only=True),
    Failing("starting the reference cache", "training.reference:start_cache", "disk",
            main_only=True, said=CACHE),
    Failing("writing the reference cache", "training.reference_shards:write_file", "disk",
            said=CACHE),
    Failing("finishing the reference cache", "training.reference:finish_cache", "disk",
            main_only=True, said=CACHE),
    Failing("reading the reference cache", "training.reference:verify_share"),
    Failing("building the optimizer", "training.run:build_optimizer", after=True),
    Failing("building the trainer", "training.run:build_scheduler"),
    Failing("looking for checkpoints", "training.checkpoint:_newest", "disk", main_only=True),
    Failing("checking the hashes", "training.checkpoint_check:why_damaged", "disk", resumes=True),
    Failing("looking for the checkpoint", "training.resume:wait_for_files", resumes=True),
    Failing("reading the checkpoint", "training.checkpoint:check_dist_checkpoint", resumes=True),
    Failing("reading the checkpoint", "training.checkpoint:fill_weights", "bug", resumes=True),
    Failing("reading the state", "training.checkpoint:load_file", "disk", resumes=True),
    Failing("resuming", "training.trainer:PreferenceTrainer.restore", resumes=True),
    Failing("opening the loggers", "training.run:MetricsLog"),
    Failing("start a checkpoint", "training.checkpoint_save:stage", "disk", main_only=True,
            said=SAVED),
    Failing("start a checkpoint", "training.checkpoint_save:wait_for_directories", said=SAVED),
    Failing("gathering the state", "training.checkpoint:Checkpointer._sharded_state", "bug",
            said=SAVED),
    Failing("planning the checkpoint", "models.sharded_save:dist_checkpointing.save", "bug",
            after=True, said=SAVED),
    Failing("copying the tensors", "models.sharded_save:ShardedSave.stage", "disk", said=SAVED),
    Failing("writing the tensors", "models.sharded_save:ShardedSave.write", "disk", said=SAVED),
    Failing("write a checkpoint", "training.checkpoint_save:save_file", "disk", said=SAVED),
    Failing("write a checkpoint", "training.checkpoint_save:describe_files", "disk", said=SAVED),
    Failing("finish a checkpoint", "training.checkpoint_save:list_files", "disk", main_only=True,
            said=SAVED),
    Failing("finish a checkpoint", "training.checkpoint_save:describe_files", "disk", call=2,
            main_only=True, said=SAVED),
    Failing("finish a checkpoint", "training.checkpoint_save:write_manifest", "disk",
            main_only=True, said=SAVED),
    Failing("removing older checkpoints", "training.checkpoint:Checkpointer._remove_or_ask",
            main_only=True),
    Failing("writing the card", "training.ending:model_card_of", "bug", task="train", settings=NEMO,
            resumes=True),
    Failing("starting the archive", "nemo.archive:stage", "disk", main_only=True, task="train",
            settings=NEMO, resumes=True, said=ARCHIVE),
    Failing("packing the archive", "nemo.archive:pack", "disk", main_only=True, task="train",
            settings=NEMO, resumes=True, said=ARCHIVE),
    Failing("exporting to Hugging Face", "training.ending:export_run", main_only=True,
            settings=("export_hf=true",), resumes=True),
    Failing("reading the adapter", "training.adapter_start:read_peft", settings=STARTED),
    Failing("reading the adapter", "training.adapter_start:adapted_matrices", "bug",
            settings=STARTED),
    Failing("exporting the adapter", "training.ending:export_adapter", main_only=True,
            settings=ADAPTERS),
)  # fmt: skip

ELSEWHERE = frozenset({"finishing the checkpoint"})
"""Stages whose failures end the process: they have launches of their own."""
