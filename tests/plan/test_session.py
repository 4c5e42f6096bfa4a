"""One command's world: what `auto` means, where things go, and what is refused before anything is computed."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from repro import request as session
from repro.errors import PRECEDENCE, Exit, ReproError, worst
from repro.request import Request, Workspace, parse_bytes
from repro.subjects.access import cache_folder
from tests.runs import SPECS

MINIMAL = SPECS / "minimal.toml"


def world(**given: Any) -> Workspace:
    return Workspace(Request(MINIMAL, **given), lambda line: None)


def refused(**given: Any) -> str:
    with pytest.raises(ReproError) as caught:
        assert world(**given).settings
    assert caught.value.code == Exit.USAGE
    return caught.value.message


# ----------------------------------------------------------------------------------------------------------- quantities


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("2GiB", 2**31),
        ("512MiB", 2**29),
        ("1000000", 10**6),
        ("1.5 KiB", 1536),
        ("3k", 3072),
        ("1TB", 2**40),
        ("1B", 1),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "lots", "-1GiB", "0", "0.5", "1e9", "2 GiB!", "GiB", "nan"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ReproError) as caught:
        parse_bytes(text)
    assert caught.value.code == Exit.USAGE
    assert caught.value.message == f"--memory {text}: give a size such as 2GiB or 512MiB"


# -------------------------------------------------------------------------------------------------- devices and kernels


@pytest.fixture
def no_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without an accelerator, whatever this one has."""
    monkeypatch.setattr(session.Path, "glob", lambda *_: iter(()))
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)


@pytest.mark.usefixtures("no_device")
def test_auto_is_the_cpu_and_tiled_torch_here() -> None:
    settings = world().settings
    assert (settings.device, settings.kernels) == ("cpu", "torch")
    assert settings.products == "ieee"
    assert (settings.precision, settings.unit, settings.prompts) == ("float32", 4, None)
    assert world(kernels="reference", prompts=7, device="cpu").settings.prompts == 7


@pytest.mark.usefixtures("no_device")
def test_a_device_or_kernels_that_are_not_here_are_refused_and_never_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    assert refused(device="cuda") == "--device cuda: torch sees no CUDA or ROCm device here; use --device cpu"
    assert refused(device="tpu") == "--device tpu: allowed are auto, cpu and cuda"
    assert refused(products="fast") == "--products fast: allowed are auto, ieee, tf32x3 and tf32"
    assert refused(products="tf32x3") == ("--products tf32x3: only --kernels triton has it, on an NVIDIA GPU; use ieee")
    assert refused(kernels="fast") == "--kernels fast: allowed are auto, triton, torch and reference"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert refused(kernels="triton") == (
        "--kernels triton: the package triton is not installed; install it or use torch"
    )


def test_auto_on_an_accelerator_is_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session.Path, "glob", lambda *_: iter([Path("/dev/nvidia0")]))
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.version.hip", None)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: (9, 0))
    settings = world().settings
    assert (settings.device, settings.kernels, settings.products) == ("cuda", "triton", "tf32x3")
    assert world(products="tf32").settings.products == "tf32"
    assert world(products="ieee").settings.products == "ieee"
    assert world(device="cpu").settings.device == "cpu"
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: (7, 5))
    assert world().settings.products == "ieee", "not there, and nobody asked for it"
    assert refused(products="tf32x3") == "--products tf32x3: TF32 needs compute capability 8.0; use 'ieee'"


# -------------------------------------------------------------------------------------------------------------- folders


def test_everything_goes_below_the_specs_folder_or_the_one_given(tmp_path: Path) -> None:
    assert world().store == SPECS.resolve() / "store"
    here = world(out=tmp_path)
    assert here.store == tmp_path / "store"
    assert here.figures_folder("toy") == tmp_path / "paper_figures" / "out" / "toy"
    assert here.committed == SPECS.resolve() / "store" / "committed"


def test_a_root_that_can_be_written_is_left_clean(tmp_path: Path) -> None:
    world(out=tmp_path / "new").check_writable()
    assert [path.name for path in (tmp_path / "new").rglob("*")] == ["store"]


@pytest.mark.parametrize("way", ["file for the root", "file for the store", "file for the figures", "no such device"])
def test_a_root_that_cannot_be_written_is_refused(tmp_path: Path, way: str) -> None:
    out = Path("/proc/nowhere") if way == "no such device" else tmp_path / "out"
    if way == "file for the root":
        out.write_text("")
    elif way == "file for the store":
        out.mkdir()
        (out / "store").write_text("")
    elif way == "file for the figures":
        out.mkdir()
        (out / "paper_figures").write_text("")
    with pytest.raises(ReproError) as caught:
        world(out=out).check_writable()
    assert caught.value.code == Exit.USAGE
    assert caught.value.message.startswith(f"--out {out}: ")
    assert caught.value.message.endswith("choose another directory")


def test_the_cache_is_where_the_user_wants_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("REPRO_CACHE", "/somewhere")
    assert cache_folder() == Path("/somewhere")
    monkeypatch.delenv("REPRO_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "dla-erasure"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "dla-erasure"


# ----------------------------------------------------------------------------------------------------------- exit codes


def test_several_problems_end_in_the_first_of_the_declared_order() -> None:
    order = [Exit.USAGE, Exit.CORRUPT, Exit.UNAVAILABLE, Exit.FAILED, Exit.DIFFERS, Exit.OK]
    assert list(PRECEDENCE) == [Exit.INTERRUPTED, *order]
    for first, second in itertools.combinations(order, 2):
        assert worst([second, first]) == worst([first, second]) == first
    assert worst([]) == Exit.OK
    assert [int(code) for code in Exit] == [0, 1, 2, 3, 4, 5, 130]


def test_a_place_is_put_in_front_once_and_keeps_the_code() -> None:
    error = ReproError("is missing", Exit.UNAVAILABLE).at("[subject.toy] model")
    assert (str(error), error.code) == ("[subject.toy] model: is missing", Exit.UNAVAILABLE)
