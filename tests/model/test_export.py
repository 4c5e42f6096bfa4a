"""A model exported from memory gives the numbers it gave in memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformer_lens.config import TransformerBridgeConfig
from transformer_lens.model_bridge.sources.native import boot
from transformers import LlamaConfig, LlamaForCausalLM

from repro.errors import ReproError
from repro.model.export import export
from repro.model.folder import read_folder
from repro.model.forward import logits, trace
from repro.model.load import load
from tests.toys import VOCAB

TOKENS = np.array([[0, 5, 9, 2, 7], [0, 3, 3, 8, 1]], dtype=np.int32)


def _native(**changes: object) -> object:
    config = TransformerBridgeConfig(
        d_model=32, n_layers=2, d_mlp=48, d_head=8, n_heads=4, n_ctx=16, d_vocab=VOCAB, act_fn="gelu",
        normalization_type="LN", positional_embedding_type="standard", architecture="TransformerLensNative", seed=3,
        **changes,
    )  # fmt: skip
    model = boot(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model.eval()


def _centred_logits(folder: Path) -> torch.Tensor:
    model = load(read_folder(folder))
    out = logits(model, trace(model, torch.from_numpy(TOKENS).long()).final)
    return out - out.mean(-1, keepdim=True)


@pytest.mark.parametrize("kind", ["native", "native grouped", "hugging face"])
def test_an_exported_model_computes_the_same(kind: str, tmp_path: Path) -> None:
    if kind == "hugging face":
        model = LlamaForCausalLM(
            LlamaConfig(
                num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, hidden_size=32, intermediate_size=48,
                vocab_size=VOCAB, max_position_embeddings=16,
            )
        ).eval()  # fmt: skip
        with torch.no_grad():
            there = model(torch.from_numpy(TOKENS).long()).logits
    else:
        model = _native(**({"n_key_value_heads": 2} if "grouped" in kind else {}))
        with torch.no_grad():
            there = model(torch.from_numpy(TOKENS).long())  # type: ignore[operator]
    here = _centred_logits(export(model, TOKENS, tmp_path / "model"))
    torch.testing.assert_close(here, there - there.mean(-1, keepdim=True), rtol=0, atol=2e-5)


def test_what_cannot_be_exported_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ReproError, match="Linear cannot be exported"):
        export(torch.nn.Linear(2, 2), TOKENS, tmp_path / "model")
    assert not (tmp_path / "model").exists()
    processed = _native()
    processed.enable_compatibility_mode(disable_warnings=True)  # type: ignore[attr-defined]
    with pytest.raises(ReproError, match="already processed"):
        export(processed, TOKENS, tmp_path / "model")
    with pytest.raises(ReproError, match="exists"):
        export(_native(), TOKENS, tmp_path)
