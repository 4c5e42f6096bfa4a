"""What a paper declares: subjects, experiments and figures, as frozen types.

Every field is read in exactly one place.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from repro.labels import is_head, layer_of

NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")
NAME_WORDS = "1 to 64 letters, digits, '_', '-' and '.', beginning with a letter or digit"
RESERVED_SUBJECTS = ("committed", "bench", "logs")
"""Folders of the store that are no subjects."""
Name = Annotated[str, Field(pattern=NAME.pattern)]
Precision = Literal["float32", "float64", "bf16"]


class Strict(BaseModel):
    """Frozen, and refusing keys nobody reads."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class Example(Strict):
    """One adversarial prompt: a text whose next token the writer seems to predict."""

    text: str
    """The prompt, without BOS."""
    answer: str
    """The model's first prediction, a single token, leading space included."""
    other: str
    """The model's second prediction, a single token."""
    head: str
    """The head shown beside the writer."""
    label: str
    """A short name for axes."""


class HubSource(Strict):
    """Rows of one tokenised data set on the hub."""

    dataset: str
    """Hub name of the data set; its column `tokens` holds the token ids."""
    rows: int = Field(gt=0)
    """How many rows to take."""
    kind: str
    """What the rows are, for the record (`text`, `code`)."""


class HubPrompts(Strict):
    """Prompts streamed from the hub once and then frozen on disk."""

    sources: tuple[HubSource, ...]
    """Data sets in the order in which they are concatenated."""
    length: int = Field(gt=1)
    """Tokens per prompt."""
    seed: int = Field(ge=0)
    """Seed of the streaming shuffle and of the permutation that follows it."""
    buffer: int = Field(gt=0)
    """Rows held by the streaming shuffle."""


class Subject(Strict):
    """A model, its prompts and its roles."""

    model: str
    """A folder (relative to the spec) or a hub name."""
    prompts: str | HubPrompts | None = None
    """A safetensors file with `tokens` (relative to the spec), a hub recipe, or nothing: the model folder's
    `prompts.safetensors`."""
    tokenizer: str | None = None
    """Hub name of the tokenizer, where the model's own repository has none."""
    writer: str = "auto"
    """A head label, or `auto`."""
    erasers: Literal["auto"] | tuple[str, ...] = "auto"
    """Head labels of one later layer, or `auto`."""
    examples: Literal["auto"] | tuple[Example, ...] = "auto"
    """The adversarial prompts, or `auto`: mined from the subject's own prompts."""
    about: str = ""
    """One line for `subjects`."""

    @field_validator("writer")
    @classmethod
    def _writer_is_a_head(cls, value: str) -> str:
        if value != "auto" and not is_head(value):
            raise ValueError("a head label such as 'L0H2', or 'auto'")
        return value

    @field_validator("examples")
    @classmethod
    def _labels_differ(cls, value: str | tuple[Example, ...]) -> str | tuple[Example, ...]:
        labels = ["auto"] if isinstance(value, str) else [example.label for example in value]
        if not labels or not all(labels) or len(set(labels)) < len(labels):
            raise ValueError("at least one example, each with a label of its own, or 'auto'")
        return value

    @field_validator("erasers")
    @classmethod
    def _erasers_share_a_layer(cls, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
        if isinstance(value, str):
            return value
        if not value or not all(is_head(label) for label in value):
            raise ValueError("head labels such as ['L2H2', 'L2H3'], or 'auto'")
        if len({layer_of(label) for label in value}) > 1:
            raise ValueError("heads of one layer, since one V-composition patch concerns one layer")
        return value

    @model_validator(mode="after")
    def _erasers_come_later(self) -> Subject:
        if self.writer == "auto" and self.erasers != "auto":
            raise ValueError("named erasers need a named writer")
        if not isinstance(self.erasers, str) and layer_of(self.erasers[0]) <= layer_of(self.writer):
            raise ValueError(
                f"erasers are heads of a layer after the writer's; {self.writer} is in layer {layer_of(self.writer)}"
            )
        return self


class Common(Strict):
    """What every experiment may say."""

    group: Name = "paper"
    """Experiments run by `all` are those of `[run] groups`; any group can be named with `--only`."""
    prompts: int | None = Field(default=None, gt=0)
    """Only the first so many prompts; nothing: all of the subject's."""
    about: str = ""
    """One line for `plan`."""
    precision: Precision | None = None
    """As `[run] precision`, for this experiment alone; nothing: the run's."""
    variant_of: str | None = None
    """The experiment that this one varies; `check` shows the two side by side."""


class Banded(Common):
    """What experiments with quantile bands may say."""

    quantiles: tuple[float, float] = (0.25, 0.75)
    """Lower and upper quantile of bands and error bars. The text of both sources says 0.25 and 0.75; the authors'
    plotting code draws 0.125 and 0.875."""

    @field_validator("quantiles")
    @classmethod
    def _ordered(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0 <= value[0] < 0.5 < value[1] <= 1:
            raise ValueError("two numbers with 0 <= lower < 0.5 < upper <= 1")
        return value


class Windowed(Common):
    """What experiments that pool over positions may say."""

    positions: tuple[int, int] | None = None
    """First and last position (inclusive) that enter, the last counted from the end if negative; nothing: all, position
    0 included."""

    @field_validator("positions")
    @classmethod
    def _forward(cls, value: tuple[int, int] | None) -> tuple[int, int] | None:
        if value is not None and not (0 <= value[0] <= value[1] or value[0] >= 0 > value[1]):
            raise ValueError("first and last position, 0 <= first <= last, or a negative last counted from the end")
        return value


class Pooled(Banded, Windowed):
    """What experiments say that reduce prompts and positions together to bands."""


class Projection(Pooled):
    """Projection ratios PR(a, b) = <a, b> / <b, b> of components `of` on nodes `onto`."""

    measure: Literal["projection"]
    of: Literal["sites", "nodes"]
    """The components projected."""
    onto: Literal["nodes", "$writer"]
    """The nodes projected on. `nodes` needs `of = "sites"`."""
    summarise: Literal["pooled", "by_position"] = "pooled"
    """Quantiles over prompts and positions together, or over prompts at each position with the variance split."""

    @model_validator(mode="after")
    def _known_combination(self) -> Projection:
        if self.onto == "nodes" and self.of != "sites":
            raise ValueError('onto = "nodes" goes with of = "sites"')
        if self.summarise == "by_position" and (self.of, self.onto) != ("sites", "$writer"):
            raise ValueError('summarise = "by_position" goes with of = "sites", onto = "$writer"')
        return self


class VPatch(Pooled):
    """V-composition patch: the writer's output taken out of the value input of every head of `layer`."""

    measure: Literal["v_patch"]
    layer: Literal["$layer"] | int = "$layer"
    """The patched layer: the erasers', or a number."""
    scale: Literal["frozen", "recomputed"] = "frozen"
    """Layer-norm scale of the patched value input: the clean run's (exact algebra), or its own."""


class ResampledDLA(Banded):
    """DLA of every head at the last position of each adversarial prompt, clean and with resampled input."""

    measure: Literal["resampled_dla"]
    resample: Literal["all_positions", "last_position"] = "all_positions"
    """What of the head's input comes from the unrelated text: everything, or query, key and value at the last position
    only."""


class DLAScatter(Windowed):
    """DLA of the writer against DLA of the erasers, whole output and V-composition, at every position."""

    measure: Literal["dla_scatter"]
    target: Literal["top2", "next_token"] = "top2"
    """The logit read: difference of the two first predictions, or the logit of the actual next token."""
    v_composition: Literal["attention", "same_position"] = "attention"
    """Sum over source positions weighted by the clean pattern, or the same position without any pattern."""


class FindWriter(Pooled):
    """The writer by rule: the head whose output is best seen after writing and least at the end."""

    measure: Literal["find_writer"]


class FindErasers(Pooled):
    """The erasers by rule: the later layer whose heads' PR onto the writer sums lowest, its heads at the bar."""

    measure: Literal["find_erasers"]
    bar: float = -0.03
    """Median PR onto the writer at or below which a head counts as an eraser."""


class MineExamples(Banded):
    """Adversarial prompts from the subject's own: confident, right, and by DLA the writer's doing."""

    measure: Literal["mine_examples"]
    count: int = Field(default=4, gt=0)
    """How many, with distinct answers from distinct prompts."""


Experiment = Annotated[
    Projection | VPatch | ResampledDLA | DLAScatter | FindWriter | FindErasers | MineExamples,
    Field(discriminator="measure"),
]


class Labels(Strict):
    """What the sources call a figure."""

    post: str | None = None
    """Number in the LessWrong post."""
    paper: str | None = None
    """Number in the paper."""


class Figure(Strict):
    """A view on one stored experiment."""

    chart: str
    """Module of `paper_figures` that draws it."""
    experiment: str
    """The experiment it views."""
    title: str
    """Title above the chart; `$writer` and `$layer` are replaced."""
    labels: Labels
    """Its numbers in the two sources."""
    options: dict[str, str | tuple[int | str, ...] | int | float | bool] = {}
    """What the chart should show; each chart documents its own."""


class Run(Strict):
    """How experiments are executed."""

    default_subjects: tuple[str, ...] = Field(min_length=1)
    """Tried in this order when no subject is named."""
    groups: tuple[str, ...] = Field(min_length=1)
    """Groups of experiments that `all` runs."""
    prompts_per_unit: int = Field(default=4, gt=0)
    """Prompts computed, written and recorded together."""
    precision: Precision = "float32"
    """Floating-point type of weights and activations; `bf16` rounds weights and the inputs and outputs of the forward's
    products, while the stream, norms and all that is measured stay float32."""
    paper_subject: str
    """The subject whose numbers `check` compares with the published ones."""


class Spec(Strict):
    """A whole paper."""

    run: Run
    subject: dict[Name, Subject]
    experiment: dict[Name, Experiment]
    figure: dict[Name, Figure]


class Loaded(Strict):
    """A spec and where it was read from."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    spec: Spec
    path: Path

    @property
    def folder(self) -> Path:
        """The spec's folder: relative paths in it start here."""
        return self.path.parent
