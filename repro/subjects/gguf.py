"""Weights in a GGUF file become a model directory in Hugging Face's format: dequantised once, kept as float32."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from repro.errors import unavailable, words_of
from repro.process import quiet, suppress_stderr

_DIGITS_APART = ("smollm",)
"""Names of splitting rules in which every digit is a token of its own; transformers ignores the rule's name."""


def convert(gguf: Path, to: Path, what: str) -> None:
    """Write config.json, model.safetensors (float32) and tokenizer.json of the model in a GGUF file.

    The weights are transformers' own dequantisation, bit for bit.

    gguf: the file. to: an empty directory. what: names it in messages. Raises ReproError (exit 4) in one sentence.
    Agreement: tests/subjects/test_pypi.py.
    """
    try:
        with quiet(), suppress_stderr(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _convert(gguf, to)
    except Exception as error:  # the libraries raise many kinds; all mean that this model cannot be had
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise unavailable(
            f"{what}: its GGUF cannot be read as a model ({type(error).__name__}: {words_of(error)})"
        ) from None


def _convert(gguf: Path, to: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from repro.model.export import save_dequantised

    source: dict[str, Any] = {"gguf_file": gguf.name, "local_files_only": True}
    model: Any = AutoModelForCausalLM.from_pretrained(str(gguf.parent), dtype=torch.float32, **source)
    save_dequantised(model, to)
    AutoTokenizer.from_pretrained(str(gguf.parent), **source).save_pretrained(to)
    _split_digits(gguf, to / "tokenizer.json")


def _split_digits(gguf: Path, tokenizer: Path) -> None:
    """Make every digit a token where the GGUF says so, which matters where spaces stand before one."""
    import tokenizers
    from gguf import GGUFReader
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence

    rule = GGUFReader(gguf).fields.get("tokenizer.ggml.pre")
    if rule is not None and rule.contents() in _DIGITS_APART:
        inner = tokenizers.Tokenizer.from_file(str(tokenizer))
        inner.pre_tokenizer = Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)])
        inner.save(str(tokenizer))
