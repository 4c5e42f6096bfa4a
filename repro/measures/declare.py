"""What each experiment will hold: its labelled arrays, declared before anything is computed. No torch here."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import singledispatch

from repro.errors import ReproError
from repro.labels import heads, heads_of, in_precision, layer_of, nodes, sites
from repro.measures.roles import ExampleTokens, Roles, later_heads
from repro.model.folder import Shape
from repro.spec.types import (
    Common,
    DLAScatter,
    FindErasers,
    FindWriter,
    MineExamples,
    Projection,
    ResampledDLA,
    VPatch,
)
from repro.store.layout import Layout, Variable

# Raised with every change that alters a measure's numbers: results of other versions are stale.
MEASURE_VERSIONS = {
    "projection": 1,
    "v_patch": 1,
    "resampled_dla": 1,
    "dla_scatter": 1,
    "find_writer": 1,
    "find_erasers": 1,
    "mine_examples": 1,
}

MINED_POSITIONS = (4, 31)
SUM_OF_ERASERS = "erasers"


@dataclass(frozen=True)
class Context:
    """What an experiment is declared on: model sizes, roles, and how much of the prompts it reads."""

    shape: Shape
    n_prompts: int
    n_positions: int
    roles: Roles | None = None
    examples: tuple[ExampleTokens, ...] = ()

    @property
    def known(self) -> Roles:
        """The roles, once they are known."""
        assert self.roles is not None, "planned before its roles were known"
        return self.roles

    @property
    def sites(self) -> list[str]:
        """Labels of the model's sites."""
        return sites(self.shape.n_layers)

    @property
    def nodes(self) -> list[str]:
        """Labels of the model's nodes."""
        return nodes(self.shape.n_layers, self.shape.n_heads)

    @property
    def heads(self) -> list[str]:
        """Labels of the model's heads."""
        return heads(self.shape.n_layers, self.shape.n_heads)

    def within(self, experiment: Common) -> Context:
        """The context cut to the experiment's own number of prompts."""
        wanted = experiment.prompts
        return replace(self, n_prompts=self.n_prompts if wanted is None else min(wanted, self.n_prompts))


@dataclass(frozen=True)
class Stream:
    """What one pass reads: the prompts' first `length` tokens, through the model at a precision."""

    length: int
    precision: str

    def __str__(self) -> str:
        return f"{self.length} tokens{in_precision(self.precision)}"


def needs(experiment: Common) -> frozenset[str]:
    """Which roles an experiment waits for: of `writer`, `erasers`, `examples`.

    Sites on all nodes depend on no role, but every summary says who writes and who erases: figures need not ask.
    """
    if isinstance(experiment, FindWriter):
        return frozenset()
    if isinstance(experiment, FindErasers | MineExamples):
        return frozenset({"writer"})
    if isinstance(experiment, ResampledDLA):
        return frozenset({"writer", "erasers", "examples"})
    return frozenset({"writer", "erasers"})


@dataclass(frozen=True)
class Directions:
    """What the experiments of a pass will ask of each batch; decided by the plan.

    sites_on_nodes: whether sites are projected on all nodes. directions: further vectors that nodes are projected on,
    of `writer`, `top2`, `next_token`.
    """

    sites_on_nodes: bool
    directions: tuple[str, ...]

    def __or__(self, other: Directions) -> Directions:
        directions = (*self.directions, *(name for name in other.directions if name not in self.directions))
        return Directions(self.sites_on_nodes or other.sites_on_nodes, directions)


def wanted(experiment: Common) -> Directions:
    """What one experiment asks of a batch."""
    if isinstance(experiment, Projection):
        return Directions(experiment.onto == "nodes", ("writer",) if experiment.of == "nodes" else ())
    if isinstance(experiment, DLAScatter):
        return Directions(False, (experiment.target,))
    if isinstance(experiment, VPatch | FindErasers):
        return Directions(False, ("writer",))
    return Directions(isinstance(experiment, FindWriter), ())


def patched_layer(experiment: VPatch, context: Context) -> int:
    """The layer a V-composition patch concerns."""
    layer = context.known.layer if experiment.layer == "$layer" else experiment.layer
    low = layer_of(context.known.writer) + 1
    if not low <= layer < context.shape.n_layers:
        raise ReproError(
            f"layer {layer} cannot be patched: the writer {context.known.writer} is read by layers {low} to "
            f"{context.shape.n_layers - 1}"
        )
    return layer


def components(context: Context) -> list[str]:
    """Every node but the writer, then the sum of the erasers."""
    return [*(node for node in context.nodes if node != context.known.writer), SUM_OF_ERASERS]


def mined_positions(context: Context) -> range:
    """Positions searched for adversarial examples: 4 to 31, each with a next token."""
    return range(MINED_POSITIONS[0], min(MINED_POSITIONS[1] + 1, context.n_positions - 1))


@singledispatch
def layout(experiment: Common, context: Context) -> Layout:
    """The arrays an experiment stores per (prompt, position), with their labels and units."""
    raise NotImplementedError(type(experiment).__name__)


def _sizes(context: Context) -> dict[str, int]:
    return {"prompt": context.n_prompts, "position": context.n_positions}


def _ratio(*dims: str, name: str = "pr") -> Variable:
    return Variable(name, (*dims, "prompt", "position"), "float32", "1", "projection ratio")


@layout.register
def _(experiment: Projection, context: Context) -> Layout:
    if experiment.onto == "nodes":
        coords = {"node": context.nodes, "site": context.sites}
        return Layout((_ratio("node", "site"),), coords, _sizes(context))
    if experiment.of == "sites":
        return Layout((_ratio("site"),), {"site": context.sites}, _sizes(context))
    return Layout((_ratio("component"),), {"component": components(context)}, _sizes(context))


@layout.register
def _(experiment: VPatch, context: Context) -> Layout:
    shape = context.shape
    coords = {
        "run": ["clean", "patched"],
        "site": context.sites,
        "head": heads_of(patched_layer(experiment, context), shape.n_heads),
    }
    return Layout(
        (_ratio("run", "site", name="site_pr"), _ratio("run", "head", name="head_pr")), coords, _sizes(context)
    )


@layout.register
def _(experiment: ResampledDLA, context: Context) -> Layout:
    variable = Variable("resampled", ("example", "head", "prompt"), "float32", "logits", "DLA with resampled input")
    coords = {"example": [example.label for example in context.examples], "head": context.heads}
    return Layout((variable,), coords, {"prompt": context.n_prompts})


@layout.register
def _(experiment: DLAScatter, context: Context) -> Layout:
    variables = (
        Variable("writer_dla", ("prompt", "position"), "float32", "logits", "DLA of the writer"),
        Variable("answer_dla", ("against", "prompt", "position"), "float32", "logits", "DLA of the erasers' answer"),
    )
    return Layout(variables, {"against": ["output", "v_composition"]}, _sizes(context))


@layout.register
def _(experiment: FindWriter, context: Context) -> Layout:
    shape = context.shape
    coords = {"head": heads(shape.n_layers - 1, shape.n_heads), "site": context.sites}
    return Layout((_ratio("head", "site"),), coords, _sizes(context))


@layout.register
def _(experiment: FindErasers, context: Context) -> Layout:
    shape = context.shape
    labels = later_heads(context.known.writer, shape.n_layers, shape.n_heads)
    return Layout((_ratio("head"),), {"head": labels}, _sizes(context))


@layout.register
def _(experiment: MineExamples, context: Context) -> Layout:
    dims = ("prompt", "position")
    variables = (
        Variable("writer_dla", dims, "float32", "logits", "DLA of the writer on the model's two first predictions"),
        Variable("first", dims, "int32", "", "token id of the first prediction"),
        Variable("second", dims, "int32", "", "token id of the second prediction"),
        Variable("actual", dims, "int32", "", "token id that follows"),
    )
    positions = mined_positions(context)
    if not positions:
        raise ReproError(
            f"prompts of {context.n_positions} tokens are too short to mine adversarial examples from; at least "
            f"{MINED_POSITIONS[0] + 2} are needed, or name the examples in the spec"
        )
    return Layout(variables, {}, {"prompt": context.n_prompts, "position": len(positions)})
