"""Files as people have them: unfinished downloads, adapters, weights in two places; each refused by a sentence."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from repro.errors import Exit
from repro.model.folder import read_folder, weights_fingerprint
from tests.model.test_folder import refused

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 165000\n"
PAGE = "<!DOCTYPE html><html><body>Sign in</body></html>"
ADAPTER = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "target_modules": ["o_proj"]}
TENSOR = {"a": torch.zeros(3)}


def half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def within_header(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:40])


def only_bin(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


SENTENCES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a pointer": (
        lambda f: (f / "model.safetensors").write_text(POINTER),
        "model.safetensors: a Git LFS pointer, not the file itself: the download is unfinished; run `git lfs pull`",
    ),
    "a pointer of prompts": (
        lambda f: (f / "config.json").write_text(POINTER),
        "config.json: a Git LFS pointer, not the file itself",
    ),
    "a page": (
        lambda f: (f / "config.json").write_text(PAGE),
        "config.json: a web page, not the file itself; download the raw file again",
    ),
    "a page of weights": (
        lambda f: (f / "model.safetensors").write_text(PAGE),
        "model.safetensors: a web page, not the file itself; download the raw file again",
    ),
    "nothing": (lambda f: (f / "model.safetensors").write_bytes(b""), "an empty file; download it again"),
    "half": (lambda f: half(f / "model.safetensors"), "bytes where its header describes"),
    "a piece": (lambda f: within_header(f / "model.safetensors"), "cut off after 40 bytes, within its header"),
    "an adapter": (
        lambda f: (f / "adapter_config.json").write_text(json.dumps(ADAPTER)),
        "adapter_config.json: an adapter beside the weights would be left out; merge it (peft: merge_and_unload",
    ),
    "an adapter's weights": (
        lambda f: save_file(TENSOR, f / "adapter_model.safetensors"),
        "adapter_model.safetensors: an adapter beside the weights would be left out",
    ),
    "twice": (
        lambda f: save_file(TENSOR, f / "model-00001-of-00001.safetensors"),
        "weights in two places: model-00001-of-00001.safetensors, model.safetensors; keep those you mean",
    ),
    "a variant": (
        lambda f: save_file(TENSOR, f / "model.fp16.safetensors"),
        "weights in two places: model.fp16.safetensors, model.safetensors",
    ),
    "another name": (
        lambda f: save_file(TENSOR, f / "consolidated.safetensors"),
        "weights in two places: model.safetensors, consolidated.safetensors",
    ),
    "both formats": (
        lambda f: torch.save(TENSOR, f / "a_final.pth"),
        "weights in two places: model.safetensors, a_final.pth",
    ),
    "quantised": (
        lambda f: (f / "model-Q4_K_M.gguf").write_bytes(b"GGUF"),
        "weights in two places: model.safetensors, model-Q4_K_M.gguf",
    ),
    "only GGUF": (
        lambda f: (f / "model.safetensors").rename(f / "model.gguf"),
        "no model.safetensors, only model.gguf; load it with transformers and call save_pretrained",
    ),
    "only pytorch_model.bin": (
        only_bin,
        "no model.safetensors, only pytorch_model.bin; load it with transformers and call save_pretrained",
    ),
    "a missing shard": (
        lambda f: (f / "model.safetensors").rename(f / "model-00001-of-00002.safetensors"),
        "model-00001-of-00002.safetensors are not one model.safetensors nor all of",
    ),
    "a missing index": (
        lambda f: (f / "model.safetensors").rename(f / "model-00001-of-00001.safetensors"),
        "model.safetensors.index.json is missing; download it to the same directory",
    ),
}


@pytest.mark.parametrize("kind", SENTENCES)
def test_files_that_would_make_another_model_are_refused_by_name(
    folders: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    model = Path(shutil.copytree(folders["gpt2"], tmp_path / "model"))
    read_folder(model)
    spoil, sentence = SENTENCES[kind]
    spoil(model)
    message = refused(lambda: read_folder(model), Exit.UNAVAILABLE)
    assert message.startswith(str(model))
    assert sentence in message


def test_what_lies_beside_a_training_run_is_no_second_model(folders: dict[str, Path], tmp_path: Path) -> None:
    model = Path(shutil.copytree(folders["gpt2"], tmp_path / "model"))
    for name in ("optimizer.pt", "rng_state.pth", "training_args.bin", "scheduler.pt"):
        torch.save({}, model / name)
    (model / "trainer_state.json").write_text("{}")
    assert read_folder(model).weights == (model / "model.safetensors",)


@pytest.mark.parametrize("name", ["tf_model.h5", "flax_model.msgpack", "rust_model.ot", "onnx/decoder_model.onnx"])
def test_exports_for_other_libraries_may_lie_beside(folders: dict[str, Path], tmp_path: Path, name: str) -> None:
    """As in a clone of gpt2: transformers reads the safetensors, and so is this."""
    folder = shutil.copytree(folders["gpt2"], tmp_path / "clone")
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(b"another format")
    assert weights_fingerprint(read_folder(folder)) == weights_fingerprint(read_folder(folders["gpt2"]))


def test_a_copy_for_pytorch_may_lie_beside_if_it_is_the_same(folders: dict[str, Path], tmp_path: Path) -> None:
    model = Path(shutil.copytree(folders["gpt2"], tmp_path / "model"))
    state = load_file(model / "model.safetensors")
    (model / "pytorch_model.bin").write_text(POINTER)
    first = weights_fingerprint(read_folder(model))
    torch.save(state, model / "pytorch_model.bin")
    assert weights_fingerprint(read_folder(model)) == first
    name = sorted(state)[0]
    state[name][..., 0] += 1
    torch.save(state, model / "pytorch_model.bin")
    message = refused(lambda: weights_fingerprint(read_folder(model)), Exit.UNAVAILABLE)
    assert f"weights in two places: model.safetensors, pytorch_model.bin (its {name} differs)" in message


def test_a_header_length_that_looks_like_text_is_no_page(tmp_path: Path, folders: dict[str, Path]) -> None:
    """The first byte of a safetensors file is the last of its header's length, and may be `<`."""
    from repro.model.contents import read_header

    for length in range(0x20, 0x20 + 512, 8):
        path = tmp_path / "x.safetensors"
        header = json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
        path.write_bytes(
            (len(header) + length).to_bytes(8, "little") + header + b" " * length + np.zeros(4, "u1").tobytes()
        )
        assert list(read_header(path)) == ["a"]


def test_weights_of_other_sizes_than_the_configuration_says_are_named(folders: dict[str, Path], tmp_path: Path) -> None:
    model = Path(shutil.copytree(folders["native"], tmp_path / "model"))
    path = model / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"d_mlp": 40}))
    assert refused(lambda: read_folder(model), Exit.UNAVAILABLE) == (
        f"{model}: config.json says d_model = 32, d_mlp = 40, and blocks.0.mlp.W_in in the weights is [32, 48]"
    )
