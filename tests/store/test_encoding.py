"""Chunks hold every bit, under the codecs that their array was begun with, and blocks are read in flat memory."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from repro.errors import Exit, ReproError
from repro.store import result as store
from repro.store.layout import Layout, Variable
from repro.store.result import Result, open_result, read_raw
from repro.store.verify import verify_result
from tests import campaigns, faulty

N_PROMPTS = 5  # three units of two prompts, the last one short
PAYLOAD = np.array([0x7FC00001], np.uint32).view(np.float32)[0]
"""A NaN that is not the usual one."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "s" / "e" / "k"


def write(result: Result, units: Iterator[int] | range) -> None:
    for i in units:
        assert result.write_unit(i, faulty.measure(result.layout, result.unit_slice(i)))


def level(path: Path) -> int:
    metadata = json.loads((path / "data.zarr" / "pr" / "zarr.json").read_text())
    return {codec["name"]: codec for codec in metadata["codecs"]}["zstd"]["configuration"]["level"]


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "int32", "uint8", "bool"])
def test_every_bit_pattern_is_found_at_its_prompts(path: Path, dtype: str) -> None:
    size = np.dtype(dtype).itemsize
    bits = np.random.default_rng(0).integers(0, 2 if dtype == "bool" else 256, (3, N_PROMPTS, 64 * size), np.uint8)
    values = bits.view(dtype)
    if dtype == "float32":
        values[0, 3, :6] = (-0.0, 0.0, PAYLOAD, np.inf, -np.inf, 1e-42)
    # Prompts neither first nor last, so that a unit is not one piece of the array.
    declared = Layout(
        (Variable("x", ("node", "prompt", "position"), dtype),), {"node": list("abc")}, {"prompt": 5, "position": 64}
    )
    with open_result(path, declared, 2, {}) as result:
        for i in (2, 0, 1):
            # A view into a larger array, as a computation may hand it over.
            assert result.write_unit(i, {"x": values[:, result.unit_slice(i)]})
        result.finalise(xr.Dataset())
        assert [result.read("x", prompt=p).tobytes() for p in range(5)] == [values[:, p].tobytes() for p in range(5)]
    assert read_raw(path)["x"].values.tobytes() == values.tobytes()
    outside = xr.open_zarr(path / "data.zarr", consolidated=False, chunks=None, mask_and_scale=False)
    assert outside["x"].values.tobytes() == values.tobytes()


def test_a_result_goes_on_with_the_codecs_it_was_begun_with(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, new = path.with_name("whole"), path.with_name("new")
    monkeypatch.setattr(store, "RAW_LEVEL", 3)
    for folder, units in ((path, range(1)), (whole, range(3))):
        with open_result(folder, faulty.layout(N_PROMPTS, 256), 2, {}) as result:
            write(result, units)
    monkeypatch.undo()
    for folder, units in ((path, range(1, 3)), (new, range(3))):
        with open_result(folder, faulty.layout(N_PROMPTS, 256), 2, {}) as result:
            write(result, units)
    assert (level(path), level(whole), level(new)) == (3, 3, store.RAW_LEVEL)
    chunks = [{k: v for k, v in campaigns.contents(f).items() if "/c." in k} for f in (path, whole, new)]
    assert chunks[0] == chunks[1]
    assert chunks[0] != chunks[2]  # else this test could not tell


def test_chunks_of_another_level_count_where_the_metadata_was_rebuilt(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "RAW_LEVEL", 3)
    with open_result(path, faulty.layout(N_PROMPTS), 2, {}) as result:
        write(result, range(2))
    monkeypatch.undo()
    (path / "manifest.json").unlink()
    with open_result(path, faulty.layout(N_PROMPTS), 2, {}) as result:
        assert level(path) == store.RAW_LEVEL
        write(result, range(2, 3))
        result.finalise(xr.Dataset())
    assert verify_result(path) == []
    assert campaigns.recorded(path) == {0, 1, 2}


@pytest.mark.parametrize(("zero", "kept"), [(0.0, True), (-0.0, False)])
def test_what_decodes_differently_by_a_bit_is_not_written(path: Path, zero: float, kept: bool) -> None:
    declared = Layout((Variable("x", ("prompt", "position")),), {}, {"prompt": 1, "position": 4})
    with open_result(path, declared, 1, {}) as result:
        # An array of whole numbers has the bits of 0.0, and -0.0 becomes an equal number of other bits.
        metadata = path / "data.zarr" / "x" / "zarr.json"
        metadata.write_text(metadata.read_text().replace("float32", "int32").replace('"NaN"', "0"))
        arrays = {"x": np.array([[0, 0, 0, zero]], np.float32)}
        if kept:
            assert result.write_unit(0, arrays)
            return
        with pytest.raises(ReproError, match="x decodes differently from what was encoded") as caught:
            result.write_unit(0, arrays)
        assert caught.value.code == Exit.FAILED
        assert not list(metadata.parent.glob("c.*"))
        assert result.missing() == [0]


@pytest.mark.parametrize("damage", ["", "{}", None])
def test_metadata_lost_after_opening_is_one_sentence(path: Path, damage: str | None) -> None:
    with open_result(path, faulty.layout(N_PROMPTS), 2, {}) as result:
        metadata = path / "data.zarr" / "pr" / "zarr.json"
        metadata.unlink()
        if damage is not None:
            metadata.write_text(damage)
        with pytest.raises(ReproError, match="the metadata of its arrays cannot be read") as caught:
            write(result, range(1))
        assert caught.value.code == Exit.CORRUPT


def test_blocks_take_the_memory_of_one_block_and_a_few_chunks(path: Path) -> None:
    nodes, sizes, max_bytes = [f"L{i}H0" for i in range(63)], {"prompt": 200, "position": 64}, 2**20
    declared = Layout((Variable("pr", ("node", "prompt", "position")),), {"node": nodes}, sizes)
    values = np.random.default_rng(0).standard_normal((63, 200, 64), np.float32)
    seen = 0
    with open_result(path, declared, 8, {}) as result:
        for i in range(result.n_units):
            result.write_unit(i, {"pr": values[:, result.unit_slice(i)]})
        tracemalloc.start()
        for index, block in result.iter_blocks("pr", max_bytes):
            assert block.nbytes <= max_bytes
            for ours, theirs in zip(block, values[index["node"]], strict=True):
                assert ours.tobytes() == theirs.tobytes()
            seen += len(block)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert seen == len(nodes)
    # Not two blocks at once, of four.
    assert peak < 2 * max_bytes < values.nbytes
