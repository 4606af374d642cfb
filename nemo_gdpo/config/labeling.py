"""The configurations of what follows `nemo-gdpo label`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from nemo_gdpo.config.base import PathText, Section, Text, Written, from_environment
from nemo_gdpo.config.data import PairFormat, Preset
from nemo_gdpo.config.evaluation import JudgeServerConfig
from nemo_gdpo.config.live_labels import LabelSource
from nemo_gdpo.config.root import Root

Count = Annotated[int, Field(ge=1)]
Cost = Annotated[float, Field(ge=0, allow_inf_nan=False)]
KEY_VARIABLE = "LABEL_STUDIO_API_KEY"


def _as_dict(value: Any) -> Any:
    return {} if value is None else value


class LabelDataConfig(Section):
    """The pairs to choose from; the keys of training, with the same values."""

    format: PairFormat = "auto"
    """Columns of the file; auto looks at the first row."""
    preset: Preset | None = None
    """A public data set in the columns it is published with; takes the place of `format`."""
    train_path: Text | None = from_environment("NEMO_GDPO_TRAIN")
    """File (.jsonl, .parquet), data set directory, or hub name; not a prepared directory, which
    has no texts."""
    split: Text = "train"
    """Split of a Hugging Face data set; files have none."""
    on_bad_pair: Literal["error", "drop"] = "error"
    """A pair that cannot be learned from (empty, identical) is refused, or left out."""

    @property
    def reader_format(self) -> str:
        """The format to read files with: the preset's, or `format`."""
        return self.preset or self.format


class LedgerConfig(Section):
    """The `label` section: the ledger."""

    ledger: PathText | None = None
    """The ledger: a file (SQLite) on a local disk, which `select` makes."""


class SelectSection(LedgerConfig):
    """What is asked about next."""

    strategy: Literal["uncertain", "random"] = "uncertain"
    """Pairs with the smallest |margin| first, or in an order that `seed` draws: the control arm."""
    margins: PathText | None = None
    """A file that `nemo-gdpo label margins` wrote. For `random` it only notes what the model thinks
    of each pair."""
    count: Count = 100
    """Pairs of the round."""
    round: Count | None = None
    """Number of the round; null begins the next one. The same number again completes the round and
    asks nothing twice."""
    budget: Annotated[int, Field(ge=0)] | None = None
    """Pairs that this ledger may ever ask about; null leaves the limit as it is."""
    seed: Annotated[int, Field(ge=0)] = 1234
    """Seed of the left/right order, of `random`, and of the order among equal margins."""


class SelectConfig(Section):
    """Everything that `nemo-gdpo label select` reads."""

    label: SelectSection = SelectSection()
    data: LabelDataConfig = Field(default_factory=LabelDataConfig)


class StudioConfig(LedgerConfig):
    """The ledger, and a Label Studio to synchronise with."""

    round: Count | None = None
    """Only pairs of this round; null takes all."""
    url: Text | None = None
    """Address of a Label Studio server; its token is read from the environment variable
    LABEL_STUDIO_API_KEY. Null works on files."""
    project: Count | None = None
    """Number of the project there; null makes one on export."""


class ExportSection(StudioConfig):
    """What annotators are given."""

    format: Literal["label_studio", "jsonl"] = "label_studio"
    """Tasks for Label Studio with its labelling configuration beside them, or plain lines."""
    output: PathText | None = None
    """File to write."""
    answered: bool = False
    """Also pairs that somebody has answered already."""
    title: Written = "nemo-gdpo labels"
    """Title of the project that is made at `url`."""


class ImportSection(StudioConfig):
    """What annotators gave back."""

    format: Literal["label_studio", "jsonl"] = "label_studio"
    """Label Studio's JSON export, or plain lines."""
    answers: PathText | None = None
    """File to read."""


class ExportConfig(Section):
    """Everything that `nemo-gdpo label export` reads."""

    label: ExportSection = ExportSection()


class ImportConfig(Section):
    """Everything that `nemo-gdpo label import` reads."""

    label: ImportSection = ImportSection()


class JudgeSection(LedgerConfig):
    """A model as one more annotator."""

    round: Count | None = None
    """Only pairs of this round; null takes all."""
    annotator: Text | None = None
    """Name that its answers bear in the ledger; null is judge:MODEL."""
    judge: JudgeServerConfig = JudgeServerConfig()


class LabelJudgeConfig(Section):
    """Everything that `nemo-gdpo label judge` reads."""

    label: JudgeSection = JudgeSection()


class StatusSection(LedgerConfig):
    """What is reported."""

    cost: Annotated[dict[LabelSource, Cost], BeforeValidator(_as_dict)] = Field(
        default=None, validate_default=True
    )
    """Source (person, judge, pseudo, data) -> price of one answer, in your currency."""


class StatusConfig(Section):
    """Everything that `nemo-gdpo label status` reads."""

    label: StatusSection = StatusSection()


SELECT = Root("label_select", SelectConfig)
EXPORT = Root("label_export", ExportConfig)
IMPORT = Root("label_import", ImportConfig)
JUDGE = Root("label_judge", LabelJudgeConfig)
STATUS = Root("label_status", StatusConfig)
