"""Ten inputs that people have and that a package may meet badly: the right numbers in float64, or one sentence."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from repro.errors import Exit
from repro.model.folder import read_folder, read_prompts
from repro.model.load import load
from repro.subjects.tokenizer import Tokenizer
from tests import toys
from tests.figures.test_labels import MANY, collisions, draw, svg
from tests.runs import cli, only_error
from tests.sweep.outcome import assert_same
from tests.sweep.truth import truth

LENGTH = 40
LLAMA = toys.LLAMA_LIKE | {"num_hidden_layers": 3}
OPT: dict[str, Any] = {key: value for key, value in toys.EVEN.items() if key != "intermediate_size"}
RIGHT: dict[str, tuple[str, dict[str, Any]]] = {
    "no architectures": ("Llama", LLAMA),
    "scores scaled by layer": ("GPT2", toys.GPT2_SIZES | {"n_layer": 3, "scale_attn_by_inverse_layer_idx": True}),
    "norms of queries and keys": ("Qwen3", LLAMA | {"head_dim": 16}),
    "scaled embedding, norms of 1 + w": ("Gemma", LLAMA | {"head_dim": 16}),
    "parallel blocks, partial rotary": ("GPTNeoX", toys.EVEN | {"num_hidden_layers": 3, "rotary_pct": 0.25}),
    "local attention within reach": (
        "GPTNeo",
        {"num_layers": 3, "num_heads": 4, "hidden_size": 32, "vocab_size": toys.VOCAB, "max_position_embeddings": 64}
        | {"attention_types": [[["global", "local", "global"], 1]], "bos_token_id": 0, "eos_token_id": 0},
    ),
    "many heads": ("GPT2", toys.GPT2_SIZES | {"n_layer": 24, "n_head": 16, "n_embd": 64}),
}


def made(path: Path, kind: str, settings: dict[str, Any]) -> Path:
    """A model of transformers in a directory."""
    import transformers

    name = f"{kind}LMHeadModel" if kind == "GPT2" else f"{kind}ForCausalLM"
    return toys.save_hugging_face(getattr(transformers, name)(getattr(transformers, f"{kind}Config")(**settings)), path)


def edit(folder: Path, **keys: Any) -> None:
    """Set keys of config.json, or take those that are None away."""
    path = folder / "config.json"
    config = json.loads(path.read_text()) | keys
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


@pytest.mark.parametrize("name", RIGHT)
def test_every_site_head_and_logit_is_the_originals(name: str, tmp_path: Path) -> None:
    folder = made(tmp_path / "model", *RIGHT[name])
    if name == "no architectures":
        edit(folder, architectures=None)
    found = read_folder(folder)
    tokens = read_prompts(found)
    model = load(found, "float64", prompts=tokens)
    given = torch.from_numpy(tokens).long()
    seen = truth(folder, given)
    assert_same(model, given, seen)
    # The control: an original whose first attention writes something else at one position.
    seen.attention[0][0, 5, 3] += 1e-3 * seen.attention[0].abs().max()
    with pytest.raises(AssertionError, match=r"resid_mid0 differs"):
        assert_same(model, given, seen)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("llama") / "model", "Llama", LLAMA)


def adapter(folder: Path) -> None:
    """A LoRA adapter beside the weights."""
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4, "target_modules": ["o_proj"]}))
    shapes = {"A": (4, 32), "B": (32, 4)}
    save_file(
        {
            f"base_model.model.model.layers.{layer}.self_attn.o_proj.lora_{name}.weight": np.ones(shape, np.float32)
            for layer in range(3)
            for name, shape in shapes.items()
        },
        folder / "adapter_model.safetensors",
    )


def pointer(folder: Path) -> None:
    """A Git LFS pointer in place of the weights."""
    pointed = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 165000\n"
    (folder / "model.safetensors").write_text(pointed)


def cut(folder: Path) -> None:
    """The first half of the weights."""
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def page(folder: Path) -> None:
    """A web page saved as config.json."""
    (folder / "config.json").write_text("<!DOCTYPE html><html><body>Not found</body></html>")


def input_ids(folder: Path) -> None:
    """Prompts as a tokenizer of transformers returns them."""
    ids = np.tile(np.arange(16), (5, 1))
    save_file({"input_ids": ids, "attention_mask": np.ones_like(ids)}, folder / "prompts.safetensors")


def only_bin(folder: Path) -> None:
    """Weights as PyTorch saves them, and no others."""
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def wrong_type(folder: Path) -> None:
    """A text where transformers takes a number."""
    edit(folder, rms_norm_eps="small")


def strange_note(folder: Path) -> None:
    """A number where transformers takes a switch, in a key that changes no pass."""
    edit(folder, use_cache="often")


SENTENCES: dict[str, tuple[Any, str]] = {
    "adapter": (
        adapter,
        "{}/adapter_config.json: an adapter beside the weights would be left out; merge it (peft: merge_and_unload, "
        "then save_pretrained) and give the merged directory, or move the adapter's files away to study the base model "
        "alone",
    ),
    "unfinished download": (
        pointer,
        "{}/model.safetensors: a Git LFS pointer, not the file itself: the download is unfinished; run `git lfs pull` "
        "there, or download the file again",
    ),
    "cut off": (cut, "{}/model.safetensors: cut off, "),
    "web page": (page, "{}/config.json: a web page, not the file itself; download the raw file again"),
    "input_ids": (
        input_ids,
        "{}/prompts.safetensors: holds no tensor `tokens` but 'attention_mask' int64 [5, 16], 'input_ids' int64 [5, 16]"
        "; save the ids, int32 [prompts, positions], BOS first, under that name",
    ),
    "only pytorch_model.bin": (
        only_bin,
        "{}: no model.safetensors, only pytorch_model.bin; load it with transformers and call save_pretrained, or ",
    ),
    "wrong type": (wrong_type, "{}/config.json: rms_norm_eps is 'small', which transformers does not take there"),
    "wrong type of a note": (
        strange_note,
        "{}/config.json: use_cache is 'often', which transformers does not take there",
    ),
}


@pytest.mark.parametrize("command", ["scan", "all"])
@pytest.mark.parametrize("name", SENTENCES)
def test_a_command_ends_in_one_sentence(name: str, command: str, llama: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(llama, tmp_path / "model"))
    spoil, sentence = SENTENCES[name]
    spoil(folder)
    given = (folder,) if command == "scan" else ("--subject", folder)
    answer = cli(command, *given, "--out", tmp_path / "out")
    assert answer.code == Exit.UNAVAILABLE
    said = [line.removeprefix("error: ") for line in answer.err.splitlines() if line.startswith("error: ")]
    assert len(said) == 1
    assert said[0].startswith(sentence.replace("{}", str(folder)))


def test_a_file_of_weights_is_no_subject(llama: Path, tmp_path: Path) -> None:
    given = llama / "model.safetensors"
    answer = cli("scan", given, "--out", tmp_path)
    assert answer.code == Exit.USAGE
    assert only_error(answer).endswith(
        f"{given}: a file; give the directory that holds config.json, the weights and prompts.safetensors"
    )


def test_projected_embeddings_and_norms_behind_are_named(tmp_path: Path) -> None:
    settings = OPT | {"ffn_dim": 48, "word_embed_proj_dim": 16, "do_layer_norm_before": False}
    folder = made(tmp_path / "model", "OPT", settings)
    answer = cli("scan", folder, "--out", tmp_path / "out")
    assert answer.code == Exit.UNAVAILABLE
    assert only_error(answer) == (
        f"{folder}/config.json: not supported: do_layer_norm_before = False, word_embed_proj_dim = 16 in config.json"
    )


def test_a_token_without_text_is_called_by_its_id(tmp_path: Path) -> None:
    """A vocabulary padded to 64 rows, 61 of them words: no name is empty, none is another's."""
    from tokenizers import Tokenizer as Made
    from tokenizers import models

    Made(models.WordLevel({f"w{index}": index for index in range(61)}, "w0")).save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer(tmp_path / "tokenizer.json", 64)
    assert [tokenizer.name(index) for index in (60, 61, 62, 63)] == ["w60", "<61>", "<62>", "<63>"]


def test_nine_erasers_of_one_layer_of_sixteen_heads_are_legible() -> None:
    assert collisions(svg(draw("LW 2", MANY["24 x 16"].nodes_onto_writer()))) == []
