"""A thousand damaged and hostile specs: a valid plan, or sentences with file and line; nothing else ever happens."""

from __future__ import annotations

import json
import random
import re
import time
from collections import Counter
from pathlib import Path

import pytest
import tomli

import repro.errors
from repro.errors import Exit, ReproError
from repro.measures import MEASURES
from repro.spec.read import read_spec
from repro.spec.types import NAME_WORDS
from tests.fuzzing import HangError, is_plain, sentences, watched, within
from tests.model.test_folder import TL, make
from tests.runs import PAPER, SPECS, cli, contents
from tests.spec_mutants import NINES, mutant

SPECIMENS = 1000
PATIENCE = 5.0
"""Seconds for one spec; an honest one takes about 0.02."""
GOOD = (SPECS / "minimal.toml").read_text()


class Place:
    """A folder with models of which only sizes and prompts are ever read, and a spec in it."""

    def __init__(self, root: Path) -> None:
        self.root, self.spec = root, root / "spec.toml"
        (root / "repro" / "subjects").mkdir(parents=True)
        make(root / "repro" / "subjects" / "mini")
        make(root / "toy")
        words(make(root / "large", TL | {"n_layers": 4, "n_heads": 8, "d_head": 4}))
        own = PAPER.read_text().replace("NeelNanda/GELU_4L512W_C4_Code", "large")
        self.originals = [own.encode(), PAPER.read_bytes(), GOOD.encode()]
        self.originals += [path.read_bytes() for path in sorted((SPECS / "refused").glob("*.toml"))]

    def plan(self, text: bytes) -> int:
        """The exit code of `plan` on a spec; AssertionError or HangError for whatever it must not do."""
        self.spec.write_bytes(text)
        with watched() as deeds, within(PATIENCE):
            answer = cli("plan", "--spec", self.spec, "--out", self.root / "out")
        assert deeds == []
        assert answer.code in (Exit.OK, Exit.USAGE, Exit.UNAVAILABLE)
        if answer.code == Exit.OK:
            assert answer.err == ""
            loud = [line for line in re.split("[\t\r\n\u2028\u2029]", answer.out) if not is_plain(line)]
            assert loud == []
            return answer.code
        said = sentences(answer.err)
        of_file = refusal(self.spec)
        assert said == (of_file or said[:1])
        assert all(re.match(rf"{re.escape(str(self.spec))}:[1-9]\d*: .", line) for line in of_file), said
        return answer.code


def refusal(path: Path) -> list[str]:
    """What is said of the file itself; nothing if it is a spec."""
    try:
        read_spec(path, MEASURES)
    except ReproError as error:
        return error.message.split("\n")
    return []


def words(model: Path) -> None:
    """A tokenizer to which all words of the paper's examples are single tokens."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    answers = ("[UNK]", "bottom", "top", "State", "University", "__", "get", "Church", "church")
    tokenizer = Tokenizer(WordLevel({word: n for n, word in enumerate(answers)}, "[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.save(str(model / "tokenizer.json"))


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def campaign(place: Place, n: int, seed: int) -> Counter[str]:
    """Plans n mutants; every third of the whole paper, of the paper with its default subject, and of a small spec."""
    rng = random.Random(seed)
    outcomes: Counter[str] = Counter()
    before = contents(place.root)
    for number in range(n):
        original = place.originals[number % 3] if number % 5 else rng.choice(place.originals)
        outcomes[f"exit {place.plan(mutant(original, rng))}"] += 1
    after = contents(place.root)
    assert {name for name in after if before.get(name) != after[name]} <= {place.spec.name}
    return outcomes


@pytest.mark.faults
def test_a_thousand_fuzzed_specs_plan_or_are_refused(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    for original in place.originals[:3]:
        assert place.plan(original) == Exit.OK
    begun = time.perf_counter()
    outcomes = campaign(place, SPECIMENS, seed=0)
    seconds = time.perf_counter() - begun
    with capsys.disabled():
        told = ", ".join(f"{outcomes[name]} {name}" for name in sorted(outcomes))
        print(f"\nfuzzed specs, 0 tracebacks, 0 hangs, 0 files written: {SPECIMENS} in {seconds:.0f} s: {told}")
    assert outcomes.total() == SPECIMENS
    # Not all of one kind: else the mutants would be too tame, or too wild to get past the parser.
    assert outcomes["exit 0"] >= 50
    assert outcomes["exit 2"] >= 500


def _hasty(path: Path, text: str) -> dict[str, object]:
    """A parser that lets through what Python says of numbers."""
    try:
        return tomli.loads(text)
    except tomli.TOMLDecodeError as error:
        raise ReproError(f"{path}:{error.lineno}: {error.msg}") from None


def _littering(path: Path) -> str:
    """A reader that leaves a file behind."""
    path.with_suffix(".bak").write_bytes(b"")
    return path.read_text()


def _sleeping(_path: Path) -> str:
    """A reader that never comes back."""
    time.sleep(600)
    return ""


@pytest.mark.parametrize(
    ("name", "careless", "line", "noticed"),
    [
        ("spec.read.tables_of", _hasty, f"x = {NINES}", "Exceeds the limit"),
        ("spec.read.text_of", _littering, "x = 1", "spec.bak"),
        ("spec.read.text_of", _sleeping, "x = 1", "still busy"),
        ("spec.read._CONTROL", re.compile("(?!)"), '[subject.toy]\nmodel = "toy"\nabout = "\\u0007"', "x07"),
        ("errors.plain", lambda text, *_: text, "[figure.'x\t']", r"\\t"),
    ],
    ids=["hasty", "littering", "sleeping", "loud", "louder"],
)
def test_the_harness_notices_a_careless_reader(
    place: Place, monkeypatch: pytest.MonkeyPatch, name: str, careless: object, line: str, noticed: str
) -> None:
    text = GOOD.replace('[subject.toy]\nmodel = "toy"', line) if "subject" in line else f"{GOOD}\n{line}"
    place.plan(text.encode())
    monkeypatch.setattr("tests.spec.test_fuzz_specs.PATIENCE", 0.1 if careless is _sleeping else 0.5)
    monkeypatch.setattr(f"repro.{name}", careless)
    monkeypatch.setattr("repro.spec.read.plain", repro.errors.plain)
    with pytest.raises((AssertionError, HangError, ValueError), match=noticed):
        place.plan(text.encode())


# ------------------------------------------------------------------------------------------------ what it found, kept


def said_of(tmp_path: Path, old: str, new: str) -> list[str]:
    """What is said of the small spec after one change, without the file's name."""
    path = tmp_path / "spec.toml"
    assert GOOD.count(old) == 1
    path.write_text(GOOD.replace(old, new))
    with within(PATIENCE):
        return [line.removeprefix(f"{path}:") for line in refusal(path)]


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ('of = "nodes"', f"prompts = {NINES}", "14: not TOML: a number of more than 4300 digits"),
        (
            'of = "nodes"',
            f"prompts = 0x{'f' * 5000}",
            "14: [experiment.nodes] prompts: given a number of thousands of digits; allowed: a whole number of 64 bits",
        ),
        (
            'of = "nodes"',
            "prompts = 9223372036854775808",
            "14: [experiment.nodes] prompts: given 9223372036854775808; allowed: a whole number of 64 bits",
        ),
        (
            '"projection"',
            "{}",
            "13: [experiment.nodes] measure: given {}; allowed: dla_card, dla_scatter, mine_examples, path_shares, "
            "projection, resampled_dla, role_shares, v_patch",
        ),
        (
            '"Every node onto $writer"',
            '"\\u001b[2J"',
            """20: [figure.one] title: given "\\u001b[2J"; allowed: text without the control character '\\x1b'""",
        ),
        (
            "labels =",
            '"a\\nb\\u001b" =',
            r"21: [figure.one] a\nb\x1b: unknown key. Allowed: chart, experiment, labels, options, title",
        ),
        (
            'of = "nodes"',
            'of = "nodes"\ngroup = "a,b"',
            f'15: [experiment.nodes] group: given "a,b"; allowed: {NAME_WORDS}',
        ),
        (
            '"L0H0"',
            f'"L0H{NINES}"',
            f"""9: [subject.toy] writer: given "L0H{"9" * 75}…; allowed: the label of a head or an MLP such as """
            """'L0H2' or 'MLP3', or 'auto'""",
        ),
        ("[run]", "#" * 300_000 + "\n[run]", "1: not a spec: more than 256 KiB"),
    ],
    ids=["digits", "hexadecimal", "bits", "measure", "terminal", "key", "group", "head", "size"],
)
def test_what_crashed_or_misled_is_a_sentence(tmp_path: Path, old: str, new: str, sentence: str) -> None:
    assert sentence in said_of(tmp_path, old, new)


def test_thousands_of_problems_are_counted_and_told_in_time(tmp_path: Path) -> None:
    said = said_of(tmp_path, '["L1H1", "L1H2"]', "[" + "1, " * 20_000 + "]")
    assert len(said) == 101
    assert said[0] == "10: [subject.toy] erasers.0: given 1; allowed: a string"
    assert said[-1] == "10: and 19900 more"
    many = "".join(f"\n[figure.f{n}]\nexperiment = 'node{n}'" for n in range(5000))
    assert len(said_of(tmp_path, "# The least", f"{many}\n#")) == 101


@pytest.mark.parametrize("path", ["a" * 300, "a/" * 3000, "~nobody-at-all/x", "a" * 300 + "/x", "\n/x/y"])
@pytest.mark.parametrize("key", ["model", "prompts"])
def test_a_path_that_the_system_cannot_look_up_is_a_sentence(place: Place, key: str, path: str) -> None:
    text = GOOD.replace('model = "toy"', f"model = {json.dumps(path)}")
    if key == "prompts":
        text = GOOD.replace('model = "toy"', f'model = "toy"\nprompts = {json.dumps(path)}')
    assert place.plan(text.encode()) in (Exit.USAGE, Exit.UNAVAILABLE)
    # The same as an argument.
    answer = cli("plan", "--spec", SPECS / "minimal.toml", "--subject", path, "--out", place.root)
    assert answer.code in (Exit.USAGE, Exit.UNAVAILABLE)
    assert len(sentences(answer.err)) == 1
