"""Damaged and hostile specs, made from a good one by a seeded random generator."""

from __future__ import annotations

import random
import re
from collections.abc import Callable

Mutator = Callable[[bytes, random.Random], bytes]

NINES = "9" * 5000
VALUES = [
    *("-1", "0", "1", "2", "true", '""', '"x"', "[]", "{}", "[[]]", "[{}]", "[1, 'a', 2.5]", "1.5", "-0.0", "1_000"),
    *("nan", "-inf", "1e400", "1e-400", str(2**31), str(2**63), "-" + "9" * 400, NINES, "0x" + "f" * 5000),
    *("0o" + "7" * 30, "0b" + "1" * 9000, "1__0", "1979-05-27", "1979-05-27T07:32:00Z", "07:32:00", "2021-02-30"),
    *('"auto"', '"$writer"', '"$layer"', '"projection"', '"path_shares"', '"by_position"', '"nodes"', '"committed"'),
    *("[0.25, 0.75]", "[0, 0]", "[5, -5]", "[0, 99999]", "[nan, nan]", "[0.1, 0.9, 0.5]"),
    *('"""\nlong\n"""', "'''\n[run]\nx = 1\n'''", "{ a = 1, b = { c = [1, { d = 2 }] } }", "{ measure = 'v_patch' }"),
    *(
        "[" * 300 + "1" + "]" * 300,
        "[" * 399 + "]" * 399,
        "[" * 20_000 + "]" * 20_000,
        "{ a = " * 200 + "1" + " }" * 200,
    ),
    *("{" + ".".join(["a"] * 900) + " = 1}", "{" + ".".join(["a"] * 9000) + " = 1}", "[\n" + "1,\n" * 600 + "]"),
    *("[" + "1, " * 20_000 + "]", "[" + "'x', " * 5000 + "]"),
    *("#", "", "=", "]", '"', "'", "\\", "!!python/object:os.system", "<<EOF"),
]
TEXTS = [
    *('"../../../etc/passwd"', '"/etc/passwd"', '"/"', '".."', '"."', '"~"', '"~root/x"', '"~nobody-at-all/x"'),
    *('"C:\\\\x"', '"\\\\\\\\host\\\\share"', '"file:///etc/passwd"', '"https://example.org/x"', '"a/b"', '"../b"'),
    *('"' + "a" * 300 + '"', '"' + "a/" * 3000 + '"', '"' + "a" * 100_000 + '"', '"\\u0000"', '"a\\u0000b/c"'),
    *('"$(touch pwned)"', '"`touch pwned`; rm -rf . #"', '"| touch pwned"', '"--out=/tmp"', '"%s%n{0}{x}${HOME}"'),
    *('"<script>alert(1)</script>"', "'\"><img src=x onerror=alert(1)>'", '"&amp;"', '"é́"', '"👩‍👩‍👧"', '"日本語"'),
    *(
        '"\\u001b[2J\\u001b]0;x\\u0007"',
        '"\\u009b2J"',
        '"\\u2028\\u2029"',
        '"a\\nb"',
        '"\\r\\n"',
        '"\\u202e"',
        '"\\ud800"',
    ),
]
HEADS = [
    *('"L0H0"', '"L1H3"', '"L2H0"', '"L3H1"', '"L0H7"', '"L9H9"', '"L0H99999999999"', f'"L0H{NINES}"', '"L٣H٤"'),
    *('"L00H01"', '"L0H0\\n"', '"auto"', '"MLP0"', '"MLP3"', '"MLP99"'),
]
WHOLES = ["-1", "0", "1", "2", "4", "31", "63", "64", "1000000", str(2**31), str(2**63 - 1), str(2**63), NINES]
PAIRS = [f"[{a}, {b}]" for a in WHOLES[:8] for b in WHOLES[:8]] + ["[1, -1]", "[39, 39]", "[0, -41]"]
KEYS = [
    *(
        "run",
        "subject",
        "experiment",
        "figure",
        "measure",
        "prompts",
        "model",
        "writer",
        "erasers",
        "examples",
        "layer",
    ),
    *('""', '" "', '"a b"', '"a.b"', '"a\\nb"', '"\\u001b[31m"', '"\\u2028"', "'\\'", '".."', '"../x"', '"/abs"'),
    *('"\\u0000"', "__class__", "__init__", "model_config", "0", '"é"', '"$writer"', "-", "a" * 70, "a" * 5000),
    *(".".join(["a"] * 200), ".".join(["a"] * 5000), '"<b>"', '"`x`"', "committed", "mini", '"' + "\\t" * 30 + '"'),
]
# Values of the right type for what a key means: the types let most of them pass.
FITTING: dict[str, list[str]] = {
    **dict.fromkeys(("model", "tokenizer", "text", "answer", "label", "group", "about", "title", "chart"), TEXTS),
    **dict.fromkeys(("writer", "head"), HEADS),
    **dict.fromkeys(("layer", "count", "rows", "length", "seed", "buffer", "prompts_per_unit"), WHOLES),
    "prompts": WHOLES + TEXTS,
    "erasers": [f"[{a}]" for a in HEADS] + [f"[{a}, {b}]" for a in HEADS[:6] for b in HEADS[:6]],
    "positions": PAIRS,
    "quantiles": ["[0.0, 1.0]", "[0.4999999999999999, 0.5000000000000001]", "[1e-300, 1]", "[0, 1]"],
    "variant_of": [*TEXTS, '"v_patch"', '"scan"'],
    "precision": ['"float64"', '"bf16"', '"float32"'],
    "default_subjects": ["['mini']", "['mini', 'mini']", "['gelu-4l']"],
    "groups": ["['roles']", "['variants']", "['beyond']", "['paper', 'paper']", "['post_1_top']"],
    "options": ["{}", "{ x = '<b>' }", "{ layers = [1, 'a'] }"],
    "labels": ["{}", "{ post = '<b>' }"],
    "scale": ['"recomputed"'],
    "of": ['"nodes"', '"sites"'],
    "onto": ['"nodes"', '"$writer"', '"MLP1"', '"L0H9"'],
    "measure": ['"path_shares"', '"mine_examples"', '"v_patch"', '"resampled_dla"'],
}
JUNK = [
    b"\0",
    b"\xff",
    b"\xef\xbb\xbf",
    b"\r",
    b"\x1b[2J",
    b"\xe2\x80\xa8",
    b"\xc0\xaf",
    b"\xed\xa0\x80",
    b'"""',
    b"[[",
]


def flip(text: bytes, rng: random.Random) -> bytes:
    """One to eight bits."""
    found = bytearray(text)
    for _ in range(rng.randint(1, 8)):
        found[rng.randrange(len(found))] ^= 1 << rng.randrange(8)
    return bytes(found)


def truncate(text: bytes, rng: random.Random) -> bytes:
    """The file ends early."""
    return text[: rng.randrange(len(text))]


def splice(text: bytes, rng: random.Random) -> bytes:
    """A piece lost, doubled or replaced by junk."""
    start, stop, at = (rng.randrange(len(text)) for _ in range(3))
    piece = rng.choice([b"", text[min(start, stop) : max(start, stop)], rng.choice(JUNK), rng.randbytes(20)])
    return text[:at] + piece + text[at + rng.choice([0, 1, 100]) :]


def recode(text: bytes, rng: random.Random) -> bytes:
    """Another encoding, or the line ends and marks of another system."""
    if rng.random() < 0.5:
        ends = rng.choice([b"\r\n", b"\r", b"\x0b", b"\xc2\x85", b"\xe2\x80\xa8"])
        return rng.choice([b"\xef\xbb\xbf", b""]) + text.replace(b"\n", ends)
    return text.decode().encode(rng.choice(["utf-16", "utf-32", "utf-7", "utf-8-sig", "cp037"]))


def _by_lines(change: Callable[[list[str], list[int], random.Random], None]) -> Mutator:
    """A mutator of the lines; it is told which of them are `key = value`."""

    def mutate(text: bytes, rng: random.Random) -> bytes:
        lines = text.decode().split("\n")
        change(lines, [n for n, line in enumerate(lines) if re.match(r"[\w-]+ = ", line)], rng)
        return "\n".join(lines).encode()

    return mutate


def _value(lines: list[str], keys: list[int], rng: random.Random) -> None:
    at = rng.choice(keys)
    lines[at] = lines[at].split(" = ")[0] + " = " + rng.choice(VALUES + TEXTS)


def _fitting(lines: list[str], keys: list[int], rng: random.Random) -> None:
    at = rng.choice([n for n in keys if lines[n].split(" = ")[0] in FITTING])
    key = lines[at].split(" = ")[0]
    lines[at] = f"{key} = {rng.choice(FITTING[key])}"


def _further(lines: list[str], keys: list[int], rng: random.Random) -> None:
    key = rng.choice([*KEYS, *FITTING, *FITTING])
    lines.insert(rng.choice(keys), f"{key} = {rng.choice(FITTING.get(key, VALUES))}")


def _renamed(lines: list[str], keys: list[int], rng: random.Random) -> None:
    at = rng.choice(keys)
    lines[at] = rng.choice(KEYS) + " = " + lines[at].split(" = ", 1)[1]


def _swapped(lines: list[str], keys: list[int], rng: random.Random) -> None:
    one, other = rng.sample(keys, 2)
    (a, x), (b, y) = (lines[at].split(" = ", 1) for at in (one, other))
    lines[one], lines[other] = rng.choice([(f"{a} = {y}", f"{b} = {x}"), (f"{b} = {x}", f"{a} = {y}")])


def _header(lines: list[str], _: list[int], rng: random.Random) -> None:
    at = rng.choice([n for n, line in enumerate(lines) if line.startswith("[")])
    table = lines[at].strip("[]").split(".")[0].split("]")[0]
    name = ".".join([table if rng.random() < 0.6 else rng.choice(KEYS), *rng.choices(KEYS, k=rng.randint(0, 2))])
    lines[at] = rng.choice([f"[{name}]", f"[[{name}]]"])


def _disorder(lines: list[str], _: list[int], rng: random.Random) -> None:
    at = rng.randrange(len(lines))
    some = lines[at : at + rng.randint(2, 30)]
    lines[at : at + len(some)] = rng.sample(some, rng.choice([len(some), len(some) // 2]))


def _many(lines: list[str], _: list[int], rng: random.Random) -> None:
    n = rng.choice([20, 300])
    lines += rng.choice(
        [
            ["[run.x]", *(f"k{i} = {i}" for i in range(10 * n))],
            [f"[experiment.e{i}]\nmeasure = 'path_shares'" for i in range(n)],
            [f"[figure.f{i}]\nexperiment = 'v_path'" for i in range(n)],
            [f"[[subject.x.examples]]\nlabel = 'a{i}'" for i in range(n)],
        ]
    )


value, fitting, further, renamed, swapped, header, disorder, many = map(
    _by_lines, (_value, _fitting, _further, _renamed, _swapped, _header, _disorder, _many)
)
MUTATORS: list[Mutator] = [
    *(flip, truncate, splice, splice, recode, renamed, header, header, disorder, many),
    *([value] * 4 + [fitting] * 12 + [further] * 4 + [swapped] * 2),
]


def mutant(text: bytes, rng: random.Random) -> bytes:
    """A spec with one to three things wrong."""
    for mutate in rng.choices(MUTATORS, k=rng.choice([1, 1, 1, 2, 3])):
        try:
            text = mutate(text, rng)
        except (IndexError, ValueError):  # what an earlier one left has no lines, or is no text
            continue
    return text
