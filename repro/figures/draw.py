"""Draws figures from the store alone: no torch, no statistics. PNG and SVG for each."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import paper_figures
from repro.errors import Exit, ReproError
from repro.files import write_durably
from repro.labels import in_precision, layer_of
from repro.progress import progress
from repro.spec.types import Figure, Loaded
from repro.store.excluded import NOTE, partial

if TYPE_CHECKING:
    import xarray as xr

STAMPS = "figures.json"
PNG_SCALE = 2


@dataclass(frozen=True)
class Source:
    """Where a figure's data lie, and what must be said about them."""

    path: Path
    stamp: str = ""
    roles: Mapping[str, Any] = field(default_factory=dict)
    """Attributes of the roles as they are known now: whether the scan claims named ones may have been found since."""


@dataclass(frozen=True)
class Drawn:
    """What became of a figure."""

    name: str
    files: tuple[Path, ...] = ()
    skipped: str = ""
    """Why it was not drawn now: `unchanged`, or what is missing."""


def lack(experiment: str, state: str) -> str:
    """Return why nothing is shown of an experiment whose result is not whole."""
    if state.startswith("partial"):
        return f"the result of {experiment} is unfinished: {state} units"
    if state.startswith("stale"):
        return f"the result of {experiment} is {state}"
    return f"no result of {experiment} in the store"


def draw(
    loaded: Loaded,
    names: Sequence[str],
    source: Callable[[str], Source | str],
    out: Path,
    fresh: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> list[Drawn]:
    """Draw the named figures into a directory; a figure whose data and code are unchanged is left alone.

    source: experiment name -> where its result lies, or why there is none; out: the directory; say: told of progress
    where there is no terminal. Raises ReproError: exit 2, once all others are drawn, for options that a chart does not
    have; exit 5 for a result that is not whole. Agreement: tests/figures/test_figures.py.
    """
    figures, papers = loaded.spec.figure, loaded.spec.run.paper_subject
    stamps = _read_stamps(out / STAMPS)
    drawn: dict[str, Drawn] = {}
    todo: list[tuple[str, Source, str]] = []
    for name in names:
        at = source(figures[name].experiment)
        if isinstance(at, str):
            drawn[name] = Drawn(name, skipped=at)
            continue
        digest, before = _digest(figures[name], at, papers), stamps.get(name, {})
        files = tuple(out / file for file in before.get("files", ()))
        if not fresh and before.get("digest") == digest and files and all(file.is_file() for file in files):
            drawn[name] = Drawn(name, files, "unchanged")
        else:
            todo.append((name, at, digest))
    refused = []
    with progress(len(todo), "figures", say) as advance:
        for name, at, digest in todo:
            try:
                files = _render(name, figures[name], at, out, papers)
            except ValueError as error:
                refused.append(f"[figure.{name}] options: {error}")
            else:
                stamps[name] = {"digest": digest, "files": [file.name for file in files]}
                write_durably(out / STAMPS, json.dumps(stamps, indent=1).encode())
                drawn[name] = Drawn(name, files)
            advance()
    if refused:
        raise ReproError("\n".join(refused))
    return [drawn[name] for name in names]


def _read_stamps(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _digest(figure: Figure, at: Source, papers: str) -> str:
    """Return a checksum of the data, the declaration, the drawing code and the version of the drawing library."""
    parts = [figure.model_dump_json(), at.stamp, str(at.roles.get("roles", "")), papers]
    parts += [at.path.name, (at.path / "COMMIT").read_text(), version("altair")]
    parts += [file.read_text() for file in sorted(Path(paper_figures.__file__).parent.glob("*.py"))]
    parts.append(Path(__file__).read_text())
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def prepared(figure: Figure, dataset: xr.Dataset, at: Source, papers: str) -> xr.Dataset:
    """Return a summary with what a chart of it reads beside the numbers: title, subtitle, options.

    dataset: as stored; at: where it lies, and what a scan says of named roles; papers: the subject whose numbers are
    the paper's.
    """
    attrs = {key: value for key, value in dataset.attrs.items() if key != "provenance"}
    if str(at.roles.get("roles")).startswith("named") and "erasers" in attrs:
        attrs.pop("found", None)
        attrs.update({key: at.roles[key] for key in ("roles", "found") if key in at.roles})
    attrs["own"] = attrs["subject"] == papers
    attrs.update(
        title=_filled(figure.title, attrs),
        subtitle=subtitle(attrs, at.stamp, labels(figure)),
        options=_options(figure, attrs),
    )
    dataset = dataset.copy(deep=False)
    dataset.attrs = attrs
    return dataset


def _render(name: str, figure: Figure, at: Source, out: Path, papers: str) -> tuple[Path, ...]:
    """Draw a figure; papers: the subject whose numbers are the paper's."""
    from repro.store.result import read_summary

    dataset = prepared(figure, read_summary(at.path), at, papers)
    out.mkdir(parents=True, exist_ok=True)
    module = paper_figures.load(figure.chart)
    files = list(_save(paper_figures.spec(figure.chart, dataset), out, name))
    if hasattr(module, "points"):
        files.append(out / f"{name}_points.png")
        module.points(dataset).save(files[-1], scale_factor=PNG_SCALE)
    return tuple(files)


def _save(spec: dict[str, Any], out: Path, name: str) -> tuple[Path, ...]:
    """Write a figure as PNG and SVG; the page of the subject holds it with all that can be pointed at."""
    import vl_convert

    png, svg = (out / f"{name}.{kind}" for kind in ("png", "svg"))
    drawn = vl_convert.vegalite_to_svg(spec)
    svg.write_text(drawn, encoding="utf-8")
    png.write_bytes(vl_convert.svg_to_png(drawn, scale=PNG_SCALE))  # laid out once for both
    return png, svg


def _filled(text: str, attrs: Mapping[str, Any]) -> str:
    """Return a title with its roles: `layer $layer` becomes `layer 2`, or `layers 2 and 3`."""
    layer = str(attrs.get("layer", ""))
    text = text.replace("layer $layer", f"layer{'s' if ' and ' in layer else ''} {layer}").replace("$layer", layer)
    names = {"$writer": attrs.get("writer", "the writer"), "$erasers": attrs.get("erasers", "the erasers")}
    for name, value in names.items():
        text = text.replace(name, str(value))
    return text


def labels(figure: Figure) -> str:
    """Return what the sources call a figure, in words; empty where neither has it."""
    named = (("post", figure.labels.post), ("paper", figure.labels.paper))
    return ", ".join(
        f"{label.capitalize() if label == 'appendix' else f'Figure {label}'} of the {where}"
        for where, label in named
        if label
    )


def _options(figure: Figure, attrs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the chart's options; `layers = "after_writer"` becomes the layers that follow the writer's."""
    options: dict[str, Any] = {key: list(v) if isinstance(v, tuple) else v for key, v in figure.options.items()}
    if options.get("layers") == "after_writer":
        options["layers"] = list(range(layer_of(str(attrs["writer"])) + 1, int(attrs["n_layers"])))
    return options


def subtitle(attrs: Mapping[str, Any], stamp: str, labels: str = "") -> str:
    """Return one line that always says whose numbers these are, and what they are worth; labels: which figure it is."""
    size = f"{attrs['n_prompts']} prompts x {attrs['n_positions']} tokens"
    parts = [labels] if labels else []
    parts.append(f"subject {attrs['subject']} ({attrs['model']}), {size}")
    if "precision" in attrs:
        parts.append(f"computed{in_precision(attrs['precision'])}")
    if not attrs["own"]:
        parts.append("NOT the paper's model")
    if str(attrs.get("roles", "")).startswith("named"):
        # The paper's own roles need no scan to be what they are.
        if attrs["roles"] != "named" and not (attrs["own"] and "found" not in attrs):
            parts.append(f"roles {attrs['roles']}")
    elif not attrs.get("found", True):
        parts.append("no erasure found; strongest candidate shown")
    if attrs.get("examples") == "mined" and attrs.get("measure") == "resampled_dla":
        wrong = attrs.get("wrong_predictions")
        parts.append("examples MINED from its prompts" + (f", {wrong} of them wrong predictions" if wrong else ""))
    if attrs.get(NOTE):
        parts.append(partial(attrs[NOTE], attrs["n_prompts"]))
    if stamp:
        parts.append(stamp)
    return " · ".join(parts)


def missing_error(drawn: Sequence[Drawn]) -> ReproError | None:
    """Return an error if some figures have nothing to show."""
    absent = [item for item in drawn if item.skipped and item.skipped != "unchanged"]
    if not absent:
        return None
    lines = [f"{item.name}: {item.skipped}" for item in absent]
    command = f"python -m repro run {' '.join(item.name for item in absent)}"
    return ReproError(f"{'; '.join(lines)}; compute it with `{command}` and the same options", Exit.FAILED)
