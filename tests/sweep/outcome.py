"""What becomes of a configuration that the package is pointed at: right, refused by name, or wrong."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from repro.errors import Exit, ReproError
from repro.model.decoder import Model
from repro.model.folder import read_folder, read_prompts
from repro.model.forward import logits, trace
from repro.model.load import load
from repro.process import quiet
from tests.sweep.configurations import LENGTH, VOCAB, Drawn, build
from tests.sweep.truth import Truth, truth
from tests.toys import write_prompts

WITHIN = 1e-9  # of the largest value; both compute in float64
LEAKS = re.compile(
    r"differs (from|by)|cannot be loaded|Error\b|NoneType|unpack|subscriptable|Traceback|mismatch|object has no|\bnan\b"
)
NO_MODEL = "transformers cannot build it"


class WrongError(AssertionError):
    """Neither right nor refused by name."""


def outcome(given: Drawn, folder: Path) -> tuple[str, str]:
    """Save a configuration as a directory of random weights and read it: `right`, or `refused` and the sentence.

    Raises WrongError for anything else, and for a configuration of a listed architecture that nobody could build.
    """
    try:
        with quiet(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            save(given, folder)
    except Exception as error:  # a configuration that transformers itself refuses is no model of anybody's
        return NO_MODEL, f"{type(error).__name__}: {' '.join(str(error).split())[:100]}"
    try:
        found = read_folder(folder)
        tokens = read_prompts(found)
        model = load(found, "float64", prompts=tokens)
    except ReproError as error:
        assert_named(error, folder)
        return "refused", error.message.replace(f"{folder}/", "").replace(str(folder), given.kind)
    except Exception as error:
        raise WrongError(f"{given.name} ends in {type(error).__name__}: {error}") from error
    with quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        seen = truth(folder, torch.from_numpy(tokens).long())
    assert_same(model, torch.from_numpy(tokens).long(), seen)
    return "right", ""


def save(given: Drawn, folder: Path) -> None:
    """Write a model of a configuration with random weights, far from trivial, and prompts as long as its context."""
    model = build(given)
    if sum(part.numel() for part in model.parameters()) > 2_000_000:
        raise ValueError("not small: its sizes go by other names")
    model = model.to_empty(device="cpu")
    # Tables of frequencies are no weights, and are on no device either.
    fresh = type(model)(model.config)
    generator = torch.Generator().manual_seed(given.number)
    with torch.no_grad():
        for parameter in fresh.parameters():
            mean = 1.0 if parameter.ndim == 1 else 0.0
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3 + mean)
        tokens = torch.arange(LENGTH)[None]
        fresh.eval()(tokens, use_cache=False)
    fresh.save_pretrained(folder)
    write_prompts(folder, length=LENGTH, vocab=VOCAB)


def assert_named(error: ReproError, folder: Path) -> None:
    """A sentence with a key of config.json, and no words of an inner error."""
    said = error.message
    if error.code not in (Exit.UNAVAILABLE, Exit.USAGE) or "\n" in said:
        raise WrongError(f"exit {error.code}: {said}")
    if LEAKS.search(said):
        raise WrongError(f"a symptom in place of a reason: {said}")
    config = json.loads((folder / "config.json").read_text())
    if not any(re.search(rf"(?<![\w.]){re.escape(key)}(\.\w+)? (=|is) ", said) for key in keys(config)):
        raise WrongError(f"no key of config.json is named: {said}")


def keys(config: Any) -> Iterator[str]:
    """Every key of a configuration, those of its tables too."""
    for key, value in config.items() if isinstance(config, dict) else ():
        yield key
        yield from keys(value)


def assert_same(model: Model, tokens: Tensor, seen: Truth) -> None:
    """Every site, head, MLP and logit is the original's, on all prompts at full length."""
    passed = trace(model, tokens)
    H, K = model.shape.n_heads, model.shape.d_head

    def moved(x: Tensor) -> Tensor:
        """What processing leaves of something that is written to the stream."""
        return x - x.mean(-1, keepdim=True) if model.center else x

    posts = [*seen.pre[1:], seen.final]
    for layer, block in enumerate(model.blocks):
        pre, attention = seen.pre[layer], seen.attention[layer]
        _near(f"resid_pre{layer}", passed.sites[2 * layer], moved(pre))
        _near(f"resid_mid{layer}", passed.sites[2 * layer + 1], moved(pre + attention))
        _near(f"MLP{layer}", passed.mlp_out[layer], moved(posts[layer] - pre - attention))
        raw = torch.einsum("bphk,hkd->bphd", seen.z[layer].unflatten(2, (H, K)), seen.W_O[layer].unflatten(0, (H, K)))
        raw = raw * seen.factor[layer][:, :, None]
        heads = torch.einsum("bphk,hkd->bphd", passed.attention[layer].z, block.W_O)
        # A head's own value bias is written at every position, and is in b_O here.
        apart = moved(raw) - heads
        _near(f"heads of layer {layer}", heads + apart[:1, :1], moved(raw))
        _near(f"sum of heads of layer {layer}", heads.sum(2) + block.b_O, moved(attention))
    _near("resid_post of the last layer", passed.final, moved(seen.final))
    ours = logits(model, passed.final)
    _near("logits", ours - ours.mean(-1, keepdim=True), seen.logits - seen.logits.mean(-1, keepdim=True))


def _near(name: str, ours: Tensor, theirs: Tensor) -> None:
    if ours.shape != theirs.shape or ours.dtype != torch.float64:
        raise WrongError(f"{name}: {ours.dtype} {list(ours.shape)} for {list(theirs.shape)}")
    off = float((ours - theirs).abs().max() / theirs.abs().max())
    if not off < WITHIN:
        raise WrongError(f"{name} differs by {off:.2g}")
