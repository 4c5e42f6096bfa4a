"""Random damage to small folders of every kind: the same model, or one sentence that names a file or a key."""

from __future__ import annotations

import json
import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from repro.errors import Exit, ReproError
from repro.model.folder import read_folder, read_prompts, weights_fingerprint
from repro.model.forward import logits, trace
from repro.model.load import load

LEAKS = ("NoneType", "unpack", "subscriptable", "AssertionError", "Traceback", "size mismatch", "KeyError")
SPECIMENS = 30
HARMLESS = {"torch_dtype": "float16", "use_cache": False, "_name_or_path": "x", "max_length": 20, "note": "mine"}


def drop_key(folder: Path, rng: random.Random) -> None:
    edit(folder, rng, lambda config, key: config.pop(key))


def harmless_key(folder: Path, rng: random.Random) -> None:
    key = rng.choice(sorted(set(HARMLESS) - ({"note"} if (folder / "generation_config.json").is_file() else set())))
    edit(folder, rng, lambda config, _: config.update({key: HARMLESS[key]}))


def unknown_key(folder: Path, rng: random.Random) -> None:
    edit(folder, rng, lambda config, _: config.update({rng.choice(["mystery", "alibi_slope"]): rng.choice([2.5, "x"])}))


def other_value(folder: Path, rng: random.Random) -> None:
    values = [None, -1, 0, 3, 1e9, "x", True, [1], {"a": 1}]
    edit(folder, rng, lambda config, key: config.update({key: rng.choice(values)}))


def edit(folder: Path, rng: random.Random, change: Callable[[dict[str, object], str], object]) -> None:
    """Change config.json, at one of its keys that are not about files of other formats."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    change(config, rng.choice(sorted(set(config) - {"architectures"})))
    path.write_text(json.dumps(config))


def cut_file(folder: Path, rng: random.Random) -> None:
    path = rng.choice([*sorted(folder.glob("*.safetensors")), folder / "config.json"])
    path.write_bytes(path.read_bytes()[: rng.randrange(path.stat().st_size)])


def replaced_file(folder: Path, rng: random.Random) -> None:
    content = rng.choice([b"<html></html>", b"version https://git-lfs.github.com/spec/v1\n", b"", b"[]", b"\0" * 99])
    rng.choice([*sorted(folder.glob("*.safetensors")), folder / "config.json"]).write_bytes(content)


def second_file(folder: Path, rng: random.Random) -> None:
    names = ["adapter_model.safetensors", "model-00001-of-00001.safetensors", "weights.safetensors", "a_final.pth"]
    shutil.copy(folder / "model.safetensors", folder / rng.choice(names))


def lost_tensor(folder: Path, rng: random.Random) -> None:
    state = load_file(folder / "model.safetensors")
    del state[rng.choice(sorted(state))]
    save_file(state, folder / "model.safetensors", {"format": "pt"})


def padded_prompts(folder: Path, rng: random.Random) -> None:
    tokens = load_file(folder / "prompts.safetensors")["tokens"]
    tokens[: rng.randint(1, 4), -rng.randint(3, 9) :] = 0
    save_file({"tokens": tokens}, folder / "prompts.safetensors")


def more_prompts(folder: Path, rng: random.Random) -> None:
    tokens = load_file(folder / "prompts.safetensors")["tokens"]
    name = rng.choice(["attention_mask", "lengths", "input_ids"])
    save_file({"tokens": tokens, name: np.zeros_like(tokens)}, folder / "prompts.safetensors")


ALWAYS_REFUSED = (unknown_key, cut_file, replaced_file, second_file, padded_prompts, more_prompts)
ALWAYS_RIGHT = (harmless_key,)
OTHERS = (drop_key, other_value, lost_tensor)


def outcome(folder: Path, expected: torch.Tensor, config: dict[str, object]) -> str:
    """Accepted and right, or refused in one plain sentence; AssertionError for anything else."""
    refusal: ReproError | None = None
    try:
        found = read_folder(folder)
        tokens = read_prompts(found)
        weights_fingerprint(found)
        model = load(found)
    except ReproError as error:
        refusal = error
    if refusal is not None:
        assert refusal.code in (Exit.USAGE, Exit.UNAVAILABLE)
        assert "\n" not in refusal.message
        assert not any(leak in refusal.message for leak in LEAKS), refusal.message
        return "refused"
    ours = logits(model, trace(model, torch.from_numpy(tokens[:2]).long()).final)
    same = ours.shape == expected.shape and torch.allclose(ours, expected, rtol=1e-4, atol=1e-4)
    changed = json.loads((folder / "config.json").read_text()) != config
    # A setting that is another model's by right (an eps, a number of heads) loads as that model, self-check passed.
    assert same or changed, "the same files, and another model"
    return "right" if same else "another model by its own configuration"


@pytest.mark.parametrize("kind", ["native", "gpt2", "llama"])
def test_a_damaged_folder_is_the_same_model_or_one_sentence(
    folders: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    good = folders[kind]
    config = json.loads((good / "config.json").read_text())
    model = load(read_folder(good))
    tokens = torch.from_numpy(read_prompts(read_folder(good))[:2]).long()
    expected = logits(model, trace(model, tokens).final)
    rng = random.Random(kind)
    outcomes: Counter[tuple[str, str]] = Counter()
    for number in range(SPECIMENS):
        spoil = (*ALWAYS_REFUSED, *ALWAYS_RIGHT, *OTHERS)[number % 10]
        folder = Path(shutil.copytree(good, tmp_path / str(number)))
        spoil(folder, rng)
        outcomes[spoil.__name__, outcome(folder, expected, config)] += 1
    for spoil in ALWAYS_REFUSED:
        assert outcomes[spoil.__name__, "refused"] == SPECIMENS // 10, spoil.__name__
    for spoil in ALWAYS_RIGHT:
        assert outcomes[spoil.__name__, "right"] == SPECIMENS // 10, spoil.__name__
