"""What a command was asked for, resolved: the spec, the subject, how to compute, and where things go."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryFile

from repro.errors import Exit, ReproError
from repro.figures.draw import Source, lack
from repro.measures import MEASURES
from repro.options import Request
from repro.plan.plan import Plan, Settings, make_plan, select
from repro.spec.read import read_spec
from repro.spec.types import Loaded
from repro.store.records import COMMIT
from repro.subjects.access import Access, cache_folder
from repro.subjects.resolve import ResolvedSubject, choose

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


class Workspace:
    """The request resolved: spec, directories, subject, settings. Each is worked out when first needed."""

    def __init__(self, request: Request, say: Callable[[str], None]) -> None:
        # A notebook may give anything.
        if request.prompts is not None and (type(request.prompts) is not int or request.prompts < 1):
            raise ReproError(f"prompts: given {request.prompts!r}; a whole number from 1 on is allowed")
        self.request = request
        self.say = say

    @cached_property
    def loaded(self) -> Loaded:
        """Read and check the spec."""
        return read_spec(self.request.spec, MEASURES)

    @property
    def root(self) -> Path:
        """Return the directory that receives `store/` and `paper_figures/out/`."""
        return self.request.out if self.request.out is not None else self.loaded.folder

    @property
    def store(self) -> Path:
        """Return the store's root."""
        return self.root / "store"

    @property
    def committed(self) -> Path:
        """Return the directory of reduced results kept in git, beside the spec."""
        return self.loaded.folder / "store" / "committed"

    def figures_folder(self, subject: str) -> Path:
        """Return where a subject's figures and its check table go."""
        return self.root / "paper_figures" / "out" / subject

    @cached_property
    def selection(self) -> tuple[list[str], list[str]]:
        """Return the experiments and figures asked for."""
        names = [part.strip() for part in self.request.only.split(",")]
        return select(self.loaded, [name for name in names if name])

    def choose(self, ask: bool) -> ResolvedSubject:
        """Return the subject; `ask`: whether the hub may be asked for it."""
        access = Access(cache_folder(), self.request.offline or not ask, self.say)
        return choose(self.loaded, self.request.subject, access, self.request.text or ())

    @cached_property
    def settings(self) -> Settings:
        """Return how to compute, every `auto` decided."""
        run = self.loaded.spec.run
        device = self._device()
        kernels = self._kernels(device)
        return Settings(
            precision=run.precision,
            kernels=kernels,
            products=self._products(kernels, device),
            device=device,
            unit=run.prompts_per_unit,
            prompts=self.request.prompts,
        )

    def _device(self) -> str:
        asked = self.request.device
        if asked not in ("auto", "cpu", "cuda"):
            raise ReproError(f"--device {asked}: allowed are auto, cpu and cuda")
        if asked == "cpu":
            return "cpu"
        present = any(Path("/dev").glob("nvidia[0-9]*")) or Path("/dev/kfd").exists()
        if asked == "auto" and not present:
            return "cpu"
        # Only where a card is present, or was asked for, is torch's word worth its start-up time.
        import torch

        if torch.cuda.is_available():
            return "cuda"
        if asked == "cuda":
            raise ReproError("--device cuda: torch sees no CUDA or ROCm device here; use --device cpu")
        return "cpu"

    def _kernels(self, device: str) -> str:
        asked = self.request.kernels
        if asked == "auto":
            return "triton" if device == "cuda" else "torch"
        if asked not in ("triton", "torch", "reference"):
            raise ReproError(f"--kernels {asked}: allowed are auto, triton, torch and reference")
        if asked == "triton":
            from importlib.util import find_spec

            if find_spec("triton") is None:
                raise ReproError("--kernels triton: the package triton is not installed; install it or use torch")
        return asked

    def _products(self, kernels: str, device: str) -> str:
        """Return how float32 is multiplied: by Triton on a GPU that has it in three TF32 parts, else as it is."""
        asked = self.request.products
        if asked not in ("auto", "ieee", "tf32x3", "tf32"):
            raise ReproError(f"--products {asked}: allowed are auto, ieee, tf32x3 and tf32")
        if kernels != "triton":
            if asked in ("auto", "ieee"):
                return "ieee"
            raise ReproError(f"--products {asked}: only --kernels triton has it, on an NVIDIA GPU; use ieee")
        if asked == "auto" and device == "cpu":
            return "ieee"
        import torch

        from repro.kernels.launch.precision import lacking, preferred

        if asked == "auto":
            return preferred(device)
        why = lacking(torch.device(device), asked)
        if why:
            raise ReproError(f"--products {asked}: {why}")
        return asked

    def plan(self, subject: ResolvedSubject, names: Sequence[str] | None = None) -> Plan:
        """Return the plan for the selection, or for some experiments."""
        chosen = self.selection[0] if names is None else names
        return make_plan(self.loaded, subject, chosen, self.settings, self.store)

    def whole_plan(self, subject: ResolvedSubject) -> Plan:
        """Return the plan for all experiments of the spec that fit the subject: others have no result of it."""
        names = list(self.loaded.spec.experiment)
        try:
            return self.plan(subject, names)
        except ReproError as error:
            if error.code == Exit.CORRUPT:
                raise
            return self.plan(subject, [name for name in names if self._fits(subject, name)])

    def _fits(self, subject: ResolvedSubject, name: str) -> bool:
        """Return whether an experiment can be planned for the subject. Raises ReproError (exit 5) for damage."""
        try:
            self.plan(subject, [name])
        except ReproError as error:
            if error.code == Exit.CORRUPT:
                raise
            return False
        return True

    def source(self, plan: Plan, experiment: str) -> Source | str:
        """Return an experiment's data: its own result, else the copy kept in git, stamped so; else why there is none.

        Raises ReproError (exit 5) for an own result that is damaged: another one must not take its place.
        """
        item = next((item for item in plan.items if item.name == experiment), None)
        if item is not None and item.fresh:
            return Source(item.path, roles=plan.roles.attrs())
        if item is not None:
            item.refuse_damage()
        copy = self.committed / plan.subject.name / experiment
        if (copy / COMMIT).is_file():
            return Source(copy, "COMMITTED")
        return lack(experiment, "" if item is None else str(item.state))

    def check_writable(self) -> None:
        """Refuse, before anything is computed, a root that cannot be written."""
        figures = next(folder for folder in self.figures_folder("any").parents if folder.exists())
        for folder in (figures, self.store):
            try:
                folder.mkdir(parents=True, exist_ok=True)
                TemporaryFile(dir=folder).close()
            except OSError as error:
                message = f"--out {self.root}: {folder} cannot be written ({error.strerror}); choose another directory"
                raise ReproError(message) from None


def parse_bytes(text: str) -> int:
    """Return a number of bytes such as `2GiB`, `512MiB` or `1000000`. Raises ReproError (exit 2)."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?\s*", text, re.IGNORECASE)
    size = int(float(match[1]) * _UNITS[match[2].upper()]) if match else 0
    if size < 1:
        raise ReproError(f"--memory {text}: give a size such as 2GiB or 512MiB", Exit.USAGE)
    return size
