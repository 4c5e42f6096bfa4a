"""The form of `published/published.toml`: every field with its meaning, nothing unknown allowed."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Source = Literal["post", "paper", "code"]
Obtained = Literal["stated", "read off", "trace", "words"]
Best = Literal["match", "within interval"]
Statistic = Literal["value", "absolute", "difference", "relative_change"]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Tolerance(_Strict):
    """How far ours may lie from the published value and be called a match: |d| <= within + relative |published|."""

    kind: Literal["absolute", "last_digit", "axis", "reference"]
    """Stated or read-off uncertainty; half a unit of the last printed digit; 2 % of the axis; the reference table's."""
    within: float = Field(ge=0)
    """Absolute part, in the unit of the number."""
    relative: float = Field(default=0.0, ge=0)
    """Part proportional to the published value."""

    def allows(self, published: float, ours: float) -> bool:
        """Return whether ours is within the tolerance of the published value."""
        return abs(ours - published) <= self.within + self.relative * abs(published)

    def __str__(self) -> str:
        if self.kind == "reference":
            return f"±({self.within:g} + {self.relative:g} |x|)"
        note = {"absolute": "", "last_digit": " (last digit)", "axis": " (2 % of the axis)"}[self.kind]
        return f"±{self.within:g}{note}"


class FigureLabels(_Strict):
    """What the sources call a figure."""

    post: str | None = None
    """Number in the LessWrong post."""
    paper: str | None = None
    """Number in the paper."""

    def __str__(self) -> str:
        labels = [f"LW {self.post}" if self.post else "", f"P {self.paper}" if self.paper else ""]
        return ", ".join(label for label in labels if label) or "appendix"


class Paper(_Strict):
    """Whose numbers these are."""

    subject: str
    """The model, by the name the sources use."""
    writer: str
    """The writer head of every figure."""
    erasers: tuple[str, ...]
    """The erasers."""
    layer: int
    """The patched layer."""
    quantiles: tuple[float, float]
    """Levels of `lower` and `upper`."""


class Drawn(_Strict):
    """Which of our experiments a variant of a published experiment is, and the settings that make it that variant."""

    experiment: str
    """Name of our experiment."""
    roles: tuple[Literal["writer", "erasers", "layer", "examples"], ...] = ()
    """What the result must share with the paper."""
    prompts: int
    """Prompts behind the published numbers; with another number ours are not the same prompts."""
    length: int = 1024
    """Tokens of a prompt, where the number depends on the prompts."""
    positions: tuple[int, int] | None = None
    """First and last position that enter; nothing: all."""
    settings: dict[str, str] = {}
    """Fields of the experiment that must hold, where the result states them."""


class Entry(_Strict):
    """One number of a table: the labels that set it apart, and its value."""

    select: dict[str, str] = {}
    value: float
    axis: float | None = None


class Common(_Strict):
    """What every table says about its entries."""

    id: str
    figure: FigureLabels
    quantity: str
    experiment: str
    variant: Literal["text", "code"] = "text"
    variable: str
    select: dict[str, str] = {}
    source: Source
    obtained: Obtained


class NumberTable(Common):
    """Numbers of one kind, stated or read off."""

    each: tuple[Entry, ...] = Field(min_length=1)
    tolerance: Tolerance | Literal["axis"]
    same_prompts: bool = False
    best: Best = "match"

    @model_validator(mode="after")
    def _axes_given(self) -> NumberTable:
        if self.tolerance == "axis" and any(entry.axis is None for entry in self.each):
            raise ValueError("an axis tolerance needs each entry's axis length")
        return self


class Compared(_Strict):
    """What a claim's value is compared with: the same element, other variable or labels."""

    variable: str | None = None
    select: dict[str, str] = {}


class Claim(Common):
    """A claim in words and the rule we test it by: above < statistic < below for each element."""

    each: tuple[dict[str, str], ...] = Field(min_length=1)
    statistic: Statistic = "value"
    against: Compared = Compared()
    above: float | None = None
    below: float | None = None

    @property
    def elements(self) -> list[dict[str, str]]:
        """Return the labels of every element."""
        return [{**self.select, **labels} for labels in self.each]

    @property
    def against_elements(self) -> list[dict[str, str]]:
        """Return what each is compared with: other labels in place of its own, "" to take one away."""
        return [{k: v for k, v in {**labels, **self.against.select}.items() if v} for labels in self.elements]

    @property
    def rule(self) -> str:
        """Return the rule as text."""
        name = {"absolute": "|value|", "relative_change": "|change| / |clean|"}.get(self.statistic, self.statistic)
        lower = "" if self.above is None else f"{self.above:g} < "
        upper = "" if self.below is None else f" < {self.below:g}"
        return f"{lower}{name}{upper}"

    @model_validator(mode="after")
    def _is_a_rule(self) -> Claim:
        if self.above is None and self.below is None:
            raise ValueError("a claim needs a bound: above, below or both")
        if (self.statistic in ("difference", "relative_change")) != ("against" in self.model_fields_set):
            raise ValueError("against goes with difference and relative_change, and only with them")
        return self


class Number(Common):
    """One published number: what it is, who drew it, and when ours counts as equal."""

    value: float
    tolerance: Tolerance
    same_prompts: bool
    """Whether the tolerance supposes the published prompts."""
    best: Best = "match"
    """The best verdict that it can get."""
    group: str | None = None
    """The large table that it is of."""


class Shown(_Strict):
    """The part of the reference table that a figure of the sources shows."""

    figure: FigureLabels
    nodes: tuple[str, ...]
    quantiles: tuple[str, ...]


class ReferenceTable(Common):
    """A table in a file of its own."""

    file: str
    tolerance: Tolerance
    same_prompts: bool
    shown: tuple[Shown, ...]


class PublishedFile(_Strict):
    """The whole file."""

    paper: Paper
    examples: dict[str, str]
    drawn: dict[str, dict[str, Drawn]]
    number: tuple[NumberTable, ...]
    claim: tuple[Claim, ...]
    reference: tuple[ReferenceTable, ...]
