"""How many megabytes a second what leaves an operation is searched for secrets and personal data.

Each pattern by itself over text that is nothing but hits, or near misses, or an ordinary log; the slowest of these is
what is reported. Then all of them together. The aim is 20 MB/s for every pattern. The floor is what any reader of a
result does first: json.loads over as many bytes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

from benchmarks.harness import Round, Scale, each, pick, take_turns
from benchmarks.records import Aim, Row, row
from benchmarks.script import main
from sage_sandbox.results.personal import KINDS, Cleaner
from sage_sandbox.results.scrub import Scrubber
from sage_sandbox.results.shapes import SHAPES

_AIM = Aim(">= 20 MB/s", 20.0, at_most=False)
_FLOOR = "json.loads"
_LINE = "2026-01-02T03:04:05.678Z INFO  worker 12 took 34.5 ms for GET /a/b?c=1 200 user=alice id=9f8e7d6c"
_PROSE = "The quick brown fox jumps over the lazy dog, and nobody knows why it does. "

_NEAR: Mapping[str, Sequence[str]] = {
    "email": ("alice@example.org ", "alice@example ", "@a.", "first.last-name_"),
    "iban": (
        *("DE89 3704 0044 0532 0130 00 ", "DE89370400440532013001 ", "NO9386011117947 ", "NO9386011117948 "),
        *(
            "GB29NWBK60161331926819 ",
            "GB29 NWBK 6016 1331 9268 18 ",
            "MT84MALT011000012345MTLCAST001S ",
            "GB82 ",
            "ABCD",
        ),
    ),
    "card": (
        *("4111111111111111 ", "4111111111111112 ", "4111 1111 1111 1111 ", "4111 1111 1111 111 "),
        *("30569309025904 ", "30569309025903 ", "378282246310006 ", "4222222222221 "),
    ),
    "ssn": ("078-05-1120 ", "078-05-112 ", "123 "),
    "phone": ("+12025550123 ", "202-555-0123 ", "202-555-012 ", "020 7946 095 ", "+1", "(0"),
}
"""Text that is nothing but this, for each kind of personal data."""


def measure(scale: Scale) -> Iterator[Row]:
    """Every pattern, then the whole."""
    length = pick(scale, 1 << 20, 1 << 18, 1 << 12)
    rounds = pick(scale, 7, 3, 1)
    for shape in SHAPES:
        texts = [gate * 2 for gate in shape.gates] + [f"{gate}aB3_-x1 " for gate in shape.gates] + [_LINE, _PROSE]
        yield _slowest(f"secret, {shape.name} ({shape.gates[0]})", shape.find, texts, length, rounds)
    for number, kind in enumerate(KINDS):
        texts = [*_NEAR[kind.name], _LINE, _PROSE]
        yield _slowest(f"personal, {kind.name} ({number})", kind.replace, texts, length, rounds)
    yield from _whole(length, rounds)


def _slowest(what: str, search: Callable[[str], object], texts: Sequence[str], length: int, rounds: int) -> Row:
    """The row of the text over which it is slowest."""
    rows = [_row(what, partial(_exhaust, search, _filled(text, length)), length, rounds, [_AIM]) for text in texts]
    return min(rows, key=lambda found: found.spread.median if found.spread else 0.0)


def _exhaust(search: Callable[[str], object], text: str) -> None:
    found = search(text)
    if not isinstance(found, tuple):
        assert isinstance(found, Iterator)
        for _ in found:
            pass


def _whole(length: int, rounds: int) -> Iterator[Row]:
    scrubber, cleaner = Scrubber(["hunter2/hunter2", "correct horse battery"]), Cleaner()
    log = _filled(_LINE + "\n", length)
    lines = json.dumps(log.split("\n"))
    gates = _filled(" ".join(dict.fromkeys(gate for shape in SHAPES for gate in shape.gates)) + " ", length)
    yield _row("all secrets, a log", partial(scrubber.text, log), length, rounds)
    yield _row("all secrets, JSON of its lines", partial(scrubber.json, lines.encode()), len(lines), rounds)
    yield _row("all secrets, nothing but their beginnings", partial(scrubber.text, gates), length, rounds)
    yield _row("all personal data, a log", partial(cleaner.text, log), length, rounds)
    yield _row("all personal data, prose", partial(cleaner.text, _filled(_PROSE, length)), length, rounds)


def _row(what: str, call: Callable[[], object], length: int, rounds: int, aims: Sequence[Aim] = ()) -> Row:
    """Megabytes a second, beside the floor's."""
    floor = json.dumps(_filled(_LINE + "\n", length).split("\n"))
    arms: dict[str, Round] = {what: each(call), _FLOOR: each(partial(json.loads, floor))}
    taken = take_turns(arms, rounds)
    speeds = {name: [length / 1e6 / seconds for seconds in values] for name, values in taken.items()}
    return row(what, speeds[what], "MB/s", {_FLOOR: speeds[_FLOOR]}, aims)


def _filled(text: str, length: int) -> str:
    return (text * (length // len(text) + 1))[:length]


if __name__ == "__main__":
    main(__doc__ or "", measure)
