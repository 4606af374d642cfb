"""The cases of each launch: a mesh and settings that must train like the plain run."""

from __future__ import annotations

from dataclasses import dataclass

from tests.parallel.settings import FAMILIES, GROUPED, OBJECTIVES
from tests.support.tiers import EVERYTHING, usual


@dataclass(frozen=True)
class Case:
    """One run of three updates."""

    name: str
    """Mesh and settings; unique within its launch and objective."""
    objective: str
    overrides: tuple[str, ...] = ()
    model: str = "tied"
    gradient: bool = False
    """Export the first gradient as though it were weights (data-parallel size 1 only)."""
    equal_start: bool = False
    """Start from the reference itself, with the gate on."""
    adapters: bool = False
    """Train adapters, over the reference's weights as the frozen base."""
    data: str = "pairs"
    """One of `tests.parallel.settings.dataset`."""

    @property
    def key(self) -> str:
        if self.data != "pairs":
            return f"{self.objective}/{self.model}, {self.data}/{self.name}"
        kind = f"{self.model} with adapters" if self.adapters else self.model
        return f"{self.objective}/{kind}/{self.name}"


TP2 = ("model.tensor_model_parallel_size=2",)
SP = ("model.sequence_parallel=true",)
PP2 = ("model.pipeline_model_parallel_size=2",)
VP2 = ("model.virtual_pipeline_model_parallel_size=2",)
CP2 = ("model.context_parallel_size=2",)
ZERO = ("optim.use_distributed_optimizer=true",)
OVERLAP = ("optim.overlap_grad_reduce=true",)
PACKED = ("data.packing=true",)
TIGHT = (*PACKED, "data.pack_tokens=64")
"""Rows that hold two or three of the pairs."""
SHARED = (*PACKED, "data.prefix_sharing=true")
GROUPS = ("data.format=groups", "data.group_size=4")
GROUPED_TIGHTLY = (*PACKED, "data.pack_tokens=128")
"""Rows that hold two groups of two pairs each, or one."""
RESIDENT = ("reference=resident",)
SWAP = ("reference=swap",)
OFF = ("reference=adapter_off",)


def micro(size: int) -> tuple[str, ...]:
    return (f"model.micro_batch_size={size}",)


def recompute(how: str) -> tuple[str, ...]:
    return (f"model.activations_checkpoint_granularity={how}",)


VARIED = ("dpo", "gdpo_db", "gdpo_tb")
"""The objectives that go through every setting: log-probs alone, EOS per position, EOS at the end.
"""

ONE_BY_ONE = ("gdpo_db", "gdpo_subtb")
"""The objectives that learn from responses one by one."""


def _families(
    name: str, objective: str, overrides: tuple[str, ...] = (), *, gradient: bool = False
) -> list[Case]:
    return [Case(name, objective, overrides, model=f, gradient=gradient) for f in FAMILIES]


def _each(settings: dict[str, tuple[str, ...]], objectives: tuple[str, ...]) -> list[Case]:
    return [Case(n, objective, s) for n, s in settings.items() for objective in objectives]


def _adapters(
    settings: dict[str, tuple[str, ...]], model: str = "tied", *, gradient: bool = False
) -> list[Case]:
    return [
        Case(name, "gdpo_db", given, model=model, gradient=gradient, adapters=True)
        for name, given in settings.items()
    ]


def _of_data(
    data: str, settings: dict[str, tuple[str, ...]], objectives: tuple[str, ...]
) -> list[Case]:
    return [Case(n, one, given, data=data) for n, given in settings.items() for one in objectives]


def _groups(settings: dict[str, tuple[str, ...]]) -> list[Case]:
    return _of_data("groups", {n: GROUPS + s for n, s in settings.items()}, tuple(GROUPED))


ADAPTED = ("tied", "qwen2", "gemma3")
"""Models with adapters: plain; with biases; with norms of heads and outputs, windows, a scale."""

ONE = [
    *(Case("plain", objective, gradient=True) for objective in OBJECTIVES),
    *(Case("plain", "gdpo_db", model=model) for model in ("untied", "llama3")),
    *_each({"packed": PACKED, "shared": SHARED, "micro 1": micro(1)}, VARIED),
    *_each(
        {
            "micro 4": micro(4),
            "packed, micro 8": PACKED + micro(8),
            "packed tightly": TIGHT,
            "shared, resident": SHARED + RESIDENT,
            "shared, recompute full": SHARED + recompute("full"),
            "shared, recompute selective": SHARED + recompute("selective"),
            "resident": RESIDENT,
            "swap": SWAP,
            "recompute selective": recompute("selective"),
            "recompute full": recompute("full"),
            "distributed optimizer": ZERO,
        },
        ("gdpo_db",),
    ),
    Case("gate", "dpo", equal_start=True),
    Case("gate", "gdpo_tb", equal_start=True),
    *_of_data("weighted", {"plain": (), "packed tightly": TIGHT, "shared": SHARED}, VARIED),
    *_of_data("weights of one", {"plain": ()}, VARIED),
    *_of_data("rows of pairs", {"plain": ()}, ONE_BY_ONE),
    *_of_data("unpaired", {"plain": (), "packed": PACKED, "packed tightly": TIGHT}, ONE_BY_ONE),
    *_groups({"plain": (), "packed": GROUPED_TIGHTLY, "micro 4": micro(4), "shared": SHARED}),
    *(case for objective in OBJECTIVES for case in _families("plain", objective, gradient=True)),
    *_families("packed", "gdpo_db", PACKED),
    *_families("shared", "gdpo_db", SHARED),
    *(Case("shared", "gdpo_db", SHARED, model=model) for model in ("untied", "llama3")),
    *(case for model in ADAPTED for case in _adapters({"plain": ()}, model, gradient=True)),
    *_adapters(
        {
            "adapter off": OFF,
            "resident": RESIDENT,
            "swap": SWAP,
            "packed, adapter off": PACKED + OFF,
            "shared": SHARED,
            "shared, adapter off, recompute full": SHARED + OFF + recompute("full"),
            "recompute full": recompute("full"),
            "recompute selective": recompute("selective"),
        }
    ),
]

TWO = [
    *_each({"TP2": TP2, "PP2": PP2, "DP2": (), "CP2": CP2}, ("dpo", "gdpo_db")),
    Case("PP2", "gdpo_tb", PP2),
    *_each(
        {
            "TP2 SP": TP2 + SP,
            "TP2 SP packed": TP2 + SP + PACKED,
            "TP2 SP recompute full": TP2 + SP + recompute("full"),
            "PP2 VP2": PP2 + VP2,
            "PP2 micro 4": PP2 + micro(4),
            "PP2 packed": PP2 + PACKED,
            "PP2 VP2 packed tightly": PP2 + VP2 + TIGHT,
            "CP2 packed": CP2 + PACKED,
            "DP2 packed tightly": TIGHT,
            "DP2 shared, packed tightly": TIGHT + SHARED,
            "TP2 SP shared": TP2 + SP + SHARED,
            "PP2 VP2 shared": PP2 + VP2 + SHARED,
            "CP2 resident, micro 1": CP2 + RESIDENT + micro(1),
            "DP2 distributed optimizer": ZERO,
            "DP2 distributed optimizer, swap": ZERO + SWAP,
            "PP2 swap": PP2 + SWAP,
            "DP2 distributed optimizer, overlap": ZERO + OVERLAP,
            "DP2 overlap, packed, micro 4": OVERLAP + PACKED + micro(4),
        },
        ("gdpo_db",),
    ),
    Case("DP2", "adpo"),
    *_of_data("weighted", {"DP2": (), "DP2 packed tightly": TIGHT}, VARIED),
    *_of_data("unpaired", {"DP2": (), "DP2 packed tightly": TIGHT, "PP2": PP2}, ONE_BY_ONE),
    *_groups({"DP2": (), "DP2 packed": GROUPED_TIGHTLY, "PP2 packed": PP2 + GROUPED_TIGHTLY}),
    *_groups({"TP2 SP": TP2 + SP, "CP2 packed": CP2 + GROUPED_TIGHTLY}),
    Case("DP2 micro 1", "adpo", micro(1)),
    Case("PP2 VP2", "gdpo_db", PP2 + VP2, model="untied"),
    Case("PP2 gate", "gdpo_tb", PP2, equal_start=True),
    # Windows and rope bases go by the number of the layer, soft-caps by nothing.
    Case("PP2 VP2", "gdpo_db", PP2 + VP2, model="gemma3"),
    Case("TP2 SP packed", "gdpo_db", TP2 + SP + PACKED, model="gemma3"),
    Case("CP2", "gdpo_db", CP2, model="gemma3"),
    Case("CP2", "gdpo_db", CP2, model="gemma2"),
    Case("CP2 packed", "gdpo_db", CP2 + PACKED, model="gemma3"),
    Case("CP2 packed", "gdpo_db", CP2 + TIGHT, model="gemma2"),
    Case("CP2 packed", "gdpo_tb", CP2 + TIGHT),
    Case("TP2 recompute selective", "gdpo_db", TP2 + recompute("selective"), model="gemma2"),
    *_adapters({"TP2": TP2, "TP2 SP": TP2 + SP}, gradient=True),
    *_adapters(
        {
            "TP2 SP recompute full, adapter off": TP2 + SP + OFF + recompute("full"),
            "PP2 resident": PP2 + RESIDENT,
            "PP2 VP2 adapter off": PP2 + VP2 + OFF,
            "PP2 VP2 swap": PP2 + VP2 + SWAP,
            "TP2 SP shared, swap": TP2 + SP + SHARED + SWAP,
            "DP2 distributed optimizer, swap": ZERO + SWAP,
            "CP2 packed": CP2 + PACKED,
            "DP2 distributed optimizer, overlap": ZERO + OVERLAP,
        }
    ),
    *_adapters({"TP2 SP packed": TP2 + SP + PACKED}, "gemma3"),
]

FOUR = [
    *(Case("TP2 PP2 SP", objective, TP2 + PP2 + SP, gradient=True) for objective in OBJECTIVES),
    *(Case("TP2 PP2", "gdpo_db", TP2 + PP2, model=model) for model in ("tied", "untied", "llama3")),
    *_each({"TP2 DP2": TP2, "PP2 DP2": PP2}, ("dpo", "gdpo_db")),
    *_each(
        {
            "TP2 DP2 SP distributed optimizer": TP2 + SP + ZERO + OVERLAP,
            "PP2 VP2 DP2 distributed optimizer, overlap": PP2 + VP2 + ZERO + OVERLAP,
            "TP2 CP2 SP": TP2 + SP + CP2,
            "CP2 DP2": CP2,
            "TP2 CP2 SP packed": TP2 + SP + CP2 + PACKED,
            "CP2 DP2 packed tightly": CP2 + TIGHT,
            "PP2 DP2 packed tightly": PP2 + TIGHT,
            "TP2 PP2 SP shared": TP2 + PP2 + SP + SHARED,
        },
        ("gdpo_db",),
    ),
    Case("DP4", "adpo"),
    *_families("TP2 PP2 SP packed", "gdpo_db", TP2 + PP2 + SP + PACKED, gradient=True),
    *_adapters({"TP2 PP2 SP": TP2 + PP2 + SP}, gradient=True),
    *_adapters(
        {
            "TP2 CP2 SP packed, adapter off": TP2 + SP + CP2 + PACKED + OFF,
            "TP2 PP2 SP shared, adapter off": TP2 + PP2 + SP + SHARED + OFF,
        }
    ),
    *_adapters({"TP2 PP2 SP packed": TP2 + PP2 + SP + PACKED}, "qwen2", gradient=True),
]

USUAL_FAMILIES = ("gemma3", "qwen2")
"""Windows, two rope bases, norms of outputs and heads; and biases."""


def _is_usual(case: Case) -> bool:
    """On one rank: every family, and one objective with all data; batching of two families."""
    if case.model in FAMILIES and not case.adapters:
        batched = case.name != "plain"
        return case.objective == "gdpo_db" and (not batched or case.model in USUAL_FAMILIES)
    if case.data in ("weighted", "unpaired"):
        return case.objective == "gdpo_db" or case.name == "plain"
    return True


SELDOM = frozenset(
    {
        "TP2 SP recompute full",
        "PP2 micro 4",
        "PP2 VP2 packed tightly",
        "DP2 shared, packed tightly",
        "CP2 resident, micro 1",
        "DP2 distributed optimizer, swap",
        "PP2 swap",
        "DP2 overlap, packed, micro 4",
        "TP2 recompute selective",
        "TP2 SP recompute full, adapter off",
        "PP2 resident",
        "PP2 VP2 swap",
        "TP2 SP shared, swap",
        "DP2 distributed optimizer, overlap",
        "TP2 CP2 SP",
        "CP2 DP2",
        "PP2 DP2 packed tightly",
        "TP2 PP2 SP shared, adapter off",
    }
)
"""Settings on several ranks whose parts other cases have: left to `make test-all`."""


SELDOM_CASES = frozenset(
    {
        *(f"dpo/tied/{mesh}" for mesh in ("TP2", "CP2", "TP2 DP2", "PP2 DP2")),
        *(f"{objective}/tied/TP2 PP2 SP" for objective in ("ipo", "odpo", "adpo", "gdpo_subtb")),
        *(f"gdpo_db/{family}/CP2" for family in ("gemma2", "gemma3")),
        *(f"gdpo_db/tied with adapters/{mesh}" for mesh in ("TP2", "TP2 PP2 SP")),
        *(f"gflownet_tb/tied, groups/{mesh}" for mesh in ("TP2 SP", "DP2")),
    }
)
"""The same of single cases: another objective goes through the mesh, or the same one packed."""


def _is_usual_mesh(case: Case) -> bool:
    if case.name in SELDOM or case.key in SELDOM_CASES:
        return False
    if case.data in ("weighted", "unpaired"):
        return case.objective == "gdpo_db"
    if len(case.overrides) <= 3 or case.adapters or case.model not in FAMILIES:
        return True
    return case.model in USUAL_FAMILIES  # on four ranks


ONE = usual(ONE, _is_usual)
TWO, FOUR = usual(TWO, _is_usual_mesh), usual(FOUR, _is_usual_mesh)
LAUNCHES: dict[int, list[Case]] = {1: ONE, 2: TWO, 4: FOUR}
"""Number of ranks -> what they run."""
_RUN = {size: {case.key for case in cases} for size, cases in LAUNCHES.items()}


def is_run(size: int, key: str) -> bool:
    """Whether a launch has a case. `make test-all` says yes to all: a wrong key fails there."""
    return EVERYTHING or key in _RUN[size]
