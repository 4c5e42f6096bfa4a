"""Labelled results on disk, written unit by unit, so that nothing that happens to a machine loses or falsifies one.

The only module that imports zarr, and only inside functions, so that `status` and planning stay quick.
store/README.md describes the files.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from repro import files
from repro.errors import Exit, ReproError
from repro.store import records
from repro.store.claims import Claims
from repro.store.committed import commit_reduced
from repro.store.datasets import open_dataset, portable, write_dataset
from repro.store.excluded import kept
from repro.store.layout import DIMENSIONS, Layout, check_place
from repro.store.records import status
from repro.store.units import Units, create

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["Result", "commit_reduced", "open_result", "read_kept", "read_raw", "read_summary", "status"]

BLOCK_BYTES = 128 * 2**20
"""Default size of a block of `Result.iter_blocks`, in bytes."""
RAW_LEVEL, SMALL_LEVEL = -1, 3
"""zstd levels of raw values, and of labels and summaries.

Of raw values hardly more than the exponents can be compressed: level 3 would save 8 % of their bytes and take three
times as long to write and ten to read. An array that was begun at another level keeps it."""


def open_result(path: Path, layout: Layout, unit: int, provenance: Mapping[str, Any]) -> Result:
    """Create the result at `path`, or resume what is there.

    path: `store/<subject>/<experiment>/<key>`; unit: prompts per unit; provenance: JSON values, kept without what
    looks like a secret; its member "environment" (versions, device kind, precision) is the fingerprint in each record.
    Returns the Result. Raises ReproError: exit 5 if the directory holds another layout or unit, is damaged, or was
    begun in another environment and is unfinished (never a mixed result); exit 1 if it cannot be written.
    Agreement: tests/store/test_store.py.
    """
    path = Path(path)
    check_place(path)
    if unit < 1:
        raise ReproError(f"a unit is at least 1 prompt, not {unit}")
    with files.disk(path):
        kept: dict[str, Any] = records.plain(provenance)
        environment = kept.get("environment", {})
        if records.load_commit(path) is None:
            (path / records.UNITS).mkdir(parents=True, exist_ok=True)
            with Claims(path / records.UNITS).turn("create"):
                create(path, layout, unit, kept, lambda folder: _write_template(folder, layout, unit))
    found = records.load_manifest(path)
    if found is None:
        raise ReproError(f"{path} says it is committed but has no manifest: see `python -m repro verify`", Exit.CORRUPT)
    there, manifest = found
    records.check_files(path, manifest["files"])
    if there != layout or manifest["unit"] != unit:
        parts = {"unit": (manifest["unit"], unit), "sizes": (dict(there.sizes), dict(layout.sizes))}
        differs = [f"{name} {one} there, {other} asked for" for name, (one, other) in parts.items() if one != other]
        others = {"variables": there.variables != layout.variables, "labels": there.coords != layout.coords}
        differs += [f"other {name}" for name, other in others.items() if other]
        what = f"another layout ({'; '.join(differs)})"
        raise ReproError(f"{path} holds {what}: remove the directory to start again", Exit.CORRUPT)
    result = Result(path, layout, manifest)
    if manifest["environment"] != environment and not result.committed:
        begun = f"{path} was begun in another environment: {manifest['environment']}, now {environment}"
        raise ReproError(f"{begun}; go back to that one, or remove the directory to start again", Exit.CORRUPT)
    return result


def _codecs(level: int) -> list[Any]:
    """Return zstd, then a checksum of what it made: a flipped bit is an error on reading, never a number."""
    from zarr.codecs import Crc32cCodec, ZstdCodec

    return [ZstdCodec(level=level), Crc32cCodec()]


def _write_template(folder: Path, layout: Layout, unit: int) -> None:
    """Write the group, the labels, and the arrays without chunks: one a unit, full in every dimension but prompts."""
    import zarr

    # Flat keys: a variable's chunks lie in one directory, so one fsync makes a new name durable.
    keys = {"name": "default", "separator": "."}
    zarr.create_group(folder, zarr_format=3)
    for dim, labels in layout.coords.items():
        coordinate = zarr.create_array(
            folder / dim,
            shape=(len(labels),),
            dtype=str,
            compressors=_codecs(SMALL_LEVEL),
            dimension_names=(dim,),
            chunk_key_encoding=keys,
            attributes={"units": "", "long_name": DIMENSIONS.get(dim, dim)},
        )
        coordinate[:] = np.array(labels, dtype=object)
    for variable in layout.variables:
        shape = layout.shape(variable)
        zarr.create_array(
            folder / variable.name,
            shape=shape,
            chunks=tuple(unit if dim == "prompt" else n for dim, n in zip(variable.dims, shape, strict=True)),
            dtype=variable.dtype,
            compressors=_codecs(RAW_LEVEL),
            fill_value=float("nan") if np.dtype(variable.dtype).kind == "f" else 0,
            dimension_names=variable.dims,
            chunk_key_encoding=keys,
            attributes={"units": variable.units, "long_name": variable.long_name},
        )


class _Encoder:
    """Arrays in memory under the metadata that lies on disk: what a chunk is here, it is there for every reader.

    data: the directory of the arrays; names: theirs. An array goes on with the codecs that it was begun with.
    """

    def __init__(self, data: Path, names: Iterable[str]) -> None:
        import zarr
        from zarr.buffer.cpu import Buffer
        from zarr.storage import MemoryStore

        metadata = {f"{name}/zarr.json": (data / name / "zarr.json").read_bytes() for name in names}
        self._memory: dict[str, Any] = {file: Buffer.from_bytes(content) for file, content in metadata.items()}
        store = MemoryStore(self._memory)
        # Without it an all-NaN chunk would leave no file, and could not be told from one that was lost.
        with zarr.config.set({"array.write_empty_chunks": True}):
            self._arrays = {name: zarr.open_array(store, path=name, mode="r+", zarr_format=3) for name in names}

    def chunk(self, name: str, key: str, index: tuple[slice, ...], values: np.ndarray) -> bytes:
        """Return the bytes of chunk `key`, which holds `values` at `index`, once they decode to the same bits again."""
        self._arrays[name][index] = values
        decoded = self._arrays[name][index]
        content: bytes = self._memory.pop(f"{name}/{key}").to_bytes()
        # Bytes, so that signed zeros and the payloads of NaN count.
        if decoded.tobytes() != values.tobytes():
            raise ReproError(f"{name} decodes differently from what was encoded: check zarr and numcodecs", Exit.FAILED)
        return content


@contextmanager
def _readable(what: str) -> Iterator[None]:
    """Turn what zarr and the operating system say about a read into one sentence."""
    try:
        yield
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise ReproError(f"{what} cannot be read: {error}; see `python -m repro verify`", Exit.CORRUPT) from error


class Result(Units):
    """One experiment's arrays, open for writing unit by unit and for reading back. Made by `open_result`."""

    def write_unit(self, i: int, arrays: Mapping[str, np.ndarray], notes: Mapping[str, Any] | None = None) -> bool:
        """Write unit i for good: chunks encoded and decoded again, fsync, read back and compare, then its record.

        arrays: every variable of the layout, with the prompts of this unit only; notes: JSON values for the record.
        Returns False, having written nothing, if the unit was done before. Raises ReproError (exit 1) for arrays that
        do not fit, a unit that another worker holds, or a disk that does not take it; what was done stays.
        """
        prompts = self.unit_slice(i)
        values = self._checked(arrays, prompts)
        chunks = {}
        for variable in self.layout.variables:
            array, index = values[variable.name], self.layout.index(variable, prompts)
            content = self._encoder.chunk(variable.name, self.layout.chunk(variable, i), index, array)
            nan = int(np.count_nonzero(np.isnan(array))) if array.dtype.kind == "f" else 0
            chunks[variable.name] = self.layout.chunk_file(variable, i), content, nan
        return self._put(i, chunks, records.plain(notes or {}))

    @cached_property
    def _encoder(self) -> _Encoder:
        with _readable(f"{self.path}: the metadata of its arrays"):
            return _Encoder(self.path / records.DATA, [variable.name for variable in self.layout.variables])

    def _checked(self, arrays: Mapping[str, np.ndarray], prompts: slice) -> dict[str, np.ndarray]:
        """Return the arrays, if they are exactly what the layout declares."""
        values = {name: np.asarray(array) for name, array in arrays.items()}
        names = {variable.name for variable in self.layout.variables}
        if set(values) != names:
            raise ReproError(f"a unit holds {sorted(names)}, given {sorted(values)}", Exit.FAILED)
        for variable in self.layout.variables:
            full = zip(variable.dims, self.layout.shape(variable), strict=True)
            expected = {dim: prompts.stop - prompts.start if dim == "prompt" else n for dim, n in full}
            given = values[variable.name]
            if given.shape != tuple(expected.values()) or given.dtype != np.dtype(variable.dtype):
                want = f"{variable.dtype} {expected}"
                raise ReproError(f"{variable.name} must be {want}, given {given.dtype} {given.shape}", Exit.FAILED)
        return values

    def read(self, variable: str, **isel: int | slice) -> np.ndarray:
        """Return part of a raw variable, by position along named dimensions, as a numpy array.

        Raises ReproError (exit 1) for prompts whose unit is not recorded: what was never computed reads as NaN in zarr.
        """
        import zarr

        declared = self.layout.variable(variable)
        unknown = set(isel) - set(declared.dims)
        if unknown:
            raise ReproError(f"{variable} has dims {list(declared.dims)}, not {sorted(unknown)}", Exit.FAILED)
        prompts = np.atleast_1d(np.arange(self.layout.n_prompts)[isel.get("prompt", slice(None))])
        absent = [int(i) for i in np.unique(prompts // self.unit) if not self.has(int(i))]
        if absent:
            raise ReproError(f"{self.path}: units {absent[:8]} are not recorded yet", Exit.FAILED)
        with _readable(f"{self.path}: {variable}"):
            array = zarr.open_array(self.path / records.DATA / variable, mode="r", zarr_format=3)
            return np.asarray(array[tuple(isel.get(dim, slice(None)) for dim in declared.dims)])

    def iter_blocks(self, variable: str, max_bytes: int = BLOCK_BYTES) -> Iterator[tuple[dict[str, slice], np.ndarray]]:
        """Yield the whole of a variable in blocks, each with all prompts and positions of some labels.

        max_bytes: size of a block; one label of every dimension is the least. Each block is filled unit by unit in the
        place of the one before, so memory is one block and one chunk; every chunk is decoded once a block.
        Yields ({labelled dimension: slice}, array with the variable's dims, which holds until the next is asked for).
        """
        declared = self.layout.variable(variable)
        shape = dict(zip(declared.dims, self.layout.shape(declared), strict=True))
        room = np.empty(0, declared.dtype)
        for block in self.layout.blocks(declared, max_bytes):
            sizes = [block[dim].stop - block[dim].start if dim in block else n for dim, n in shape.items()]
            # The first block is the largest.
            room = room if room.size else np.empty(math.prod(sizes), declared.dtype)
            out = room[: math.prod(sizes)].reshape(sizes)
            for i in range(self.n_units):
                prompts = self.unit_slice(i)
                out[self.layout.index(declared, prompts)] = self.read(variable, prompt=prompts, **block)
            yield block, out

    def finalise(self, summary: xr.Dataset) -> None:
        """Verify every unit against its record, write the `summary` group, and commit; do nothing if it is committed.

        Racing workers take turns: one commits, the others return when it has. Raises ReproError: exit 1 if units are
        missing, exit 5 if some changed on disk (they are forgotten, so that the next run recomputes them).
        """
        self._commit(lambda folder: write_dataset(summary, folder, _codecs(SMALL_LEVEL)))


def read_summary(path: Path) -> xr.Dataset:
    """Return the reduced result at `path`, a result directory or a copy kept in git, loaded.

    Its attrs["provenance"] says where it came from, as JSON. All of it can be written with `to_netcdf`.
    Raises ReproError (exit 5) if it is not committed, or if a byte of it differs from what was committed.
    """
    path = Path(path)
    commit = records.checked_commit(path, (records.SUMMARY, records.ARCHIVE, records.PROVENANCE))
    if commit.get("copy"):
        from zarr.storage import ZipStore

        with ZipStore(path / records.ARCHIVE, mode="r") as archive:
            dataset = open_dataset(archive).load()
    else:
        dataset = open_dataset(path / records.DATA, "summary").load()
    dataset.attrs["provenance"] = files.load(path / records.PROVENANCE)
    dataset.attrs = portable(dataset.attrs)
    return dataset


def read_raw(path: Path) -> xr.Dataset:
    """Return the raw arrays of a committed result, read from disk only where they are indexed.

    Raises ReproError (exit 5) if it is not committed or not whole; a flipped bit in a chunk is an error on reading.
    """
    path = Path(path)
    if records.checked_commit(path, (records.DATA,)).get("copy"):
        raise ReproError(f"{path} is a reduced copy: it has no raw arrays", Exit.CORRUPT)
    found = status(path)
    if found.kind != "committed":
        raise ReproError(f"{path}: {found.why or found}; see `python -m repro verify`", Exit.CORRUPT)
    return open_dataset(path / records.DATA)


def read_kept(path: Path) -> xr.Dataset:
    """Return the raw arrays of a committed result, loaded, without the prompts that are left out; attrs: its summary's.

    Raises ReproError (exit 5) as `read_summary` and `read_raw` do.
    """
    attrs = read_summary(path).attrs
    return kept(read_raw(path), attrs).load().assign_attrs(attrs)
