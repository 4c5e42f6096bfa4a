"""`verify` names every file that is not what it should be, and `invalidate` costs no more than what it damaged."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import xarray as xr

from repro.errors import Exit, ReproError
from repro.store.result import commit_reduced, read_raw, read_summary, status
from repro.store.verify import Finding, invalidate, repair, verify, verify_result
from tests import campaigns, faulty
from tests.runs import ROOT

N_PROMPTS = 9
CHUNK, OTHER = "data.zarr/pr/c.0.3.0", "data.zarr/pr/c.0.0.0"
RECORD = "units/000003.json"


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pristine") / "store"
    faulty.run(root / "s" / "e" / "k", N_PROMPTS)
    commit_reduced(root / "s" / "e" / "k", root / "committed" / "s" / "e")
    return root


@pytest.fixture
def root(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "store"))


@pytest.fixture
def path(root: Path) -> Path:
    return root / "s" / "e" / "k"


def _flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def _truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-3])


def _swap(file: Path) -> None:
    other = file.with_name("c.0.0.0" if file.name.startswith("c.") else "000000.json")
    ours, theirs = file.read_bytes(), other.read_bytes()
    file.write_bytes(theirs)
    other.write_bytes(ours)


def _link(file: Path) -> None:
    real = file.rename(file.parents[6] / "elsewhere")
    file.symlink_to(real)


def test_an_untouched_store_has_no_findings(root: Path) -> None:
    (root / "README.md").write_text("schema")
    (root / "committed" / "README.md").write_text("copies")
    assert verify(root) == []
    assert verify(root / "nowhere") == []


def test_what_is_kept_in_git_has_no_findings(tmp_path: Path) -> None:
    kept = shutil.copytree(ROOT / "store" / "committed", tmp_path / "store" / "committed")
    assert verify(tmp_path / "store") == []
    _flip(kept / "mini" / "v_patch" / "summary.zarr.zip")
    assert [finding.file for finding in verify(tmp_path / "store")] == ["summary.zarr.zip"]


@pytest.mark.parametrize("damage", [_flip, _truncate, Path.unlink])
@pytest.mark.parametrize(
    ("file", "recomputed"),
    [
        (CHUNK, [3]),
        ("data.zarr/count/c.4", [4]),
        (RECORD, [3]),
        ("data.zarr/pr/zarr.json", []),
        ("data.zarr/node/c.0", []),
        ("data.zarr/zarr.json", []),
        ("data.zarr/summary/pr/c/0", []),
        ("data.zarr/summary/zarr.json", []),
        ("manifest.json", []),
        ("provenance.json", []),
        ("COMMIT", []),
    ],
)
def test_damage_is_found_and_only_its_units_are_recomputed(
    root: Path, path: Path, file: str, recomputed: list[int], damage: Callable[[Path], None]
) -> None:
    before = campaigns.contents(path)
    damage(path / file)
    findings = verify(root)
    if damage is Path.unlink and file == "COMMIT":
        # Without COMMIT it is a result that was not finished: nothing is wrong, and nobody reads it.
        assert findings == []
        assert str(status(path)) == "partial 5/5"
    else:
        assert [finding.path for finding in findings] == [path / file]
        assert [i for finding in findings for i in finding.units] == recomputed
        prompts = [faulty.UNIT * i for i in recomputed]
        ends = [min(start + faulty.UNIT, N_PROMPTS) for start in prompts]
        assert list(findings[0].prompts) == list(zip(prompts, ends, strict=True))
        assert str(path / file) in str(findings[0])
    assert repair(path) == findings
    log = path.parents[3] / "log"
    log.write_text("")
    faulty.run(path, N_PROMPTS, log)
    assert [int(line) for line in log.read_text().split()] == recomputed
    assert campaigns.contents(path) == before
    assert verify(root) == []


@pytest.mark.parametrize(("file", "units"), [(CHUNK, {0, 3}), (RECORD, {0, 3})])
def test_swapped_files_are_both_found(root: Path, path: Path, file: str, units: set[int]) -> None:
    _swap(path / file)
    findings = verify(root)
    assert {i for finding in findings for i in finding.units} == units
    assert len(findings) == 2


def test_a_result_in_the_place_of_another_is_found(root: Path, path: Path) -> None:
    path.rename(path.with_name("other"))
    assert {finding.file for finding in verify(root)} >= {"manifest.json", "COMMIT"}


def test_records_without_a_manifest_are_found(path: Path) -> None:
    (path / "COMMIT").unlink()
    (path / "manifest.json").unlink()
    assert [finding.file for finding in verify_result(path)] == ["manifest.json"]


def test_links_are_named_and_not_followed(root: Path, path: Path) -> None:
    _link(path / CHUNK)
    (path / "data.zarr" / "away").symlink_to("/")
    (root / "loop").symlink_to(root)
    found = {finding.file: finding.foreign for finding in verify(root)}
    assert found == {CHUNK: False, "data.zarr/away": True, "loop": True}


@pytest.mark.parametrize(
    "file", ["notes.txt", "data.zarr/pr/c.0.9.0", "data.zarr/extra/zarr.json", "units/000099.json", "units/x.claim"]
)
def test_foreign_files_are_named_and_left_alone(root: Path, path: Path, file: str) -> None:
    (path / file).parent.mkdir(exist_ok=True)
    (path / file).write_text("{}")
    (finding,) = verify(root)
    assert (finding.path, finding.foreign) == (path / file, True)
    invalidate(finding)
    assert (path / file).exists()
    assert str(status(path)) == "committed"


@pytest.mark.parametrize("where", ["junk.txt", "s/junk.txt", "s/e/junk.txt", "committed/s/junk.txt"])
def test_foreign_files_beside_results_are_named(root: Path, where: str) -> None:
    (root / where).write_text("x")
    assert [(finding.path, finding.foreign) for finding in verify(root)] == [(root / where, True)]


def test_leftovers_of_a_killed_process_are_no_findings(root: Path, path: Path) -> None:
    (path / "units" / "4.claim").write_text("{")
    (path / "data.zarr" / "pr" / ".c.0.1.0.0123456789ab.tmp").write_bytes(b"half")
    assert verify(root) == []


@pytest.mark.parametrize("file", ["summary.zarr.zip", "provenance.json", "COMMIT"])
@pytest.mark.parametrize("damage", [_flip, Path.unlink])
def test_damage_in_a_copy_is_found_and_left_to_git(root: Path, file: str, damage: Callable[[Path], None]) -> None:
    copy = root / "committed" / "s" / "e"
    damage(copy / file)
    (finding,) = verify(root)
    assert finding.path == copy / file
    with pytest.raises(ReproError, match="restore it from git") as caught:
        invalidate(finding)
    assert caught.value.code == Exit.CORRUPT
    with pytest.raises(ReproError) as caught:
        read_summary(copy)
    assert caught.value.code == Exit.CORRUPT


def test_a_damaged_result_is_refused_by_its_readers(path: Path) -> None:
    (path / CHUNK).write_bytes((path / OTHER).read_bytes() + b"x")
    assert status(path).kind == "corrupt"
    with pytest.raises(ReproError, match="verify"):
        read_raw(path)
    _flip(path / "data.zarr" / "summary" / "pr" / "c" / "0")
    with pytest.raises(ReproError, match="damaged or missing"):
        read_summary(path)


def test_a_damaged_chunk_is_not_committed(path: Path) -> None:
    (path / "COMMIT").unlink()
    _flip(path / CHUNK)
    with faulty.reopened(path, N_PROMPTS) as result:
        summary = read_summary_of(path)
        with pytest.raises(ReproError, match=r"units \[3\] changed on disk") as caught:
            result.finalise(summary)
        assert caught.value.code == Exit.CORRUPT
        assert result.missing() == [3]
        with pytest.raises(ReproError, match="1 of 5 units are not recorded"):
            result.finalise(summary)


def read_summary_of(path: Path) -> xr.Dataset:
    """A summary of the same shape, from the copy."""
    return read_summary(path.parents[2] / "committed" / "s" / "e")


def test_a_finding_says_where_what_and_whom() -> None:
    finding = Finding(Path("store/s/e/k"), CHUNK, "is missing", ((12, 16),), (3,))
    assert str(finding) == f"store/s/e/k/{CHUNK}: is missing (prompts 12 to 15)"
