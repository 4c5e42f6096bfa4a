"""The test hub speaks the protocol: the public libraries talk to it as they are."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from tests.hub_server import HubServer

pytestmark = pytest.mark.hub

UNMODIFIED = """
import huggingface_hub, os, sys, time
name, rows, commit = sys.argv[1:]
info = huggingface_hub.model_info(name, files_metadata=True)
assert {item.rfilename for item in info.siblings} == {"tokenizer.json", "tokenizer_config.json", "model_final.pth"}
path = huggingface_hub.hf_hub_download(name, "model_final.pth")
assert os.path.getsize(path) == 300_000 and info.sha in path
assert len(huggingface_hub.HfFileSystem().ls(name)) == 3
import transformers
assert transformers.AutoTokenizer.from_pretrained(name)("a b").input_ids == [1, 2]
import datasets
stream = datasets.load_dataset(rows, split="train", streaming=True, revision=commit)
assert sum(1 for _ in stream) == 60
sys.stdout.flush()
os._exit(0)
"""


def test_the_libraries_talk_to_the_hub_unmodified(tmp_path: Path) -> None:
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1, "b": 2}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    files: dict[str, bytes | Path] = {
        "tokenizer.json": tokenizer.to_str().encode(),
        "tokenizer_config.json": b'{"tokenizer_class": "PreTrainedTokenizerFast"}',
        "model_final.pth": bytes(300_000),
    }
    with HubServer() as hub:
        hub.add("model", "owner/all", files)
        commit = hub.add_rows("owner/text", [np.arange(90).reshape(30, 3)] * 2)
        environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path), "HF_HUB_DISABLE_TELEMETRY": "1"}
        done = subprocess.run(
            [sys.executable, "-c", UNMODIFIED, "owner/all", "owner/text", commit],
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
