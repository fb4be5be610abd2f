"""Takes secrets out of what an operation left, before anything else sees it.

Values that are known are found however they are spelled; of those that are not, the shapes that hardly anything else
has. Whoever wants to get a secret out past this can (it need only be spelled backwards): that is what the sandbox is
for. This is against accidents.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from itertools import groupby
from typing import Final, NamedTuple, TypeVar

from sage_sandbox.frozen import frozen
from sage_sandbox.outcome import Attempt, Contact, Outcome, Violation
from sage_sandbox.policy import SECRET_NAMES, STATE_KEY_NAMES, STREAM_KEPT
from sage_sandbox.results.json_strings import JsonStrings
from sage_sandbox.results.shapes import (
    SHAPES,
    Find,
    Shape,
    Span,
    compiled,
    continues_key,
    fold,
    is_secret,
    leaves_key_open,
    replaced,
)
from sage_sandbox.results.spellings import SHORTEST, anchors, spellings

_KNOWN: Final = "known"
_HEAD: Final = 4
_NAMED: Final = "named-secret"
_KEY: Final = "private-key"
_REST_LEAST: Final = 4
_REST_MOST: Final = 4096
"""How many characters of a known value, or of a line, go where the beginning of a stream, and of them, was dropped."""

_GATED: Final = tuple((shape, tuple(gate.encode() for gate in shape.gates)) for shape in SHAPES)
_GATES: Final = tuple(sorted({gate.lower() for _, gates in _GATED for gate in gates}))
_ESCAPED: Final = r"\\u00[2-7]"
"""ASCII that JSON need not escape, and somebody did: no literal can be relied on where it stands."""
_REPLACED: Final = rf"\[secret:(?:{'|'.join(sorted({_KNOWN, *(shape.name for shape in SHAPES)}))})\]"
_WORD: Final = r"""[^\s"'`,;]+"""
_MASK: Final = "\x1f"
"""Stands for each character of what was replaced: white space that no secret goes across."""

_SECRET_SUFFIXES: Final = (
    "PASSWORD", "_PASSWD", "_PASSPHRASE", "_SECRET", "_TOKEN", "_API_KEY", "_APIKEY", "_ACCESS_KEY", "_SECRET_KEY",
    "_PRIVATE_KEY", "_SIGNING_KEY", "_ENCRYPTION_KEY",
)  # fmt: skip

_Record = TypeVar("_Record", Violation, Contact, Attempt)


def known_values(environ: Mapping[str, str], *, state_keys: bool = True) -> tuple[str, ...]:
    """The values in an environment that are secrets by their names, and long enough to be looked for.

    Without ``state_keys`` as a worker gets them: what opens the state never leaves the coordinator.
    """
    left_out = () if state_keys else STATE_KEY_NAMES
    found = {value: None for name, value in environ.items() if name not in left_out and _is_secret_name(name)}
    return tuple(value for value in found if len(value.strip()) >= SHORTEST)


def _is_secret_name(name: str) -> bool:
    if name in SECRET_NAMES:
        return not name.endswith("_FILE")  # a path is no secret, and may well be in a result
    return f"_{name.upper()}".endswith(_SECRET_SUFFIXES)


@frozen
class Hits:
    """What was replaced: the name of its rule for each secret, in the order they were found."""

    names: tuple[str, ...] = ()

    @property
    def count(self) -> int:
        """How many secrets."""
        return len(self.names)

    def __bool__(self) -> bool:
        return bool(self.names)

    def __add__(self, other: Hits) -> Hits:
        return Hits(self.names + other.names) if other.names else self


NOTHING: Final = Hits()


class _Suspects(NamedTuple):
    """What may be in a text, as far as its literals tell; most often nothing."""

    shapes: Sequence[Shape]
    spellings: Sequence[str]


class Scrubber:
    """Replaces the values it knows, and whatever has the shape of a secret, by ``[secret:NAME]``.

    It never changes, crosses process borders, and does not show what it knows. In what it has scrubbed it finds
    nothing any more.
    """

    __slots__ = ("_anchored", "_anchors", "_heads", "_known")

    def __init__(self, known: Iterable[str] = ()) -> None:
        self._known = tuple(dict.fromkeys(known))
        self._know(spelling for value in self._known for spelling in spellings(value))

    def knowing(self, values: Iterable[str]) -> Scrubber:
        """One that knows these values, too."""
        wider = Scrubber(values)
        wider._known += self._known
        wider._know((*wider._anchored, *self._anchored))
        return wider

    def __reduce__(self) -> tuple[type[Scrubber], tuple[tuple[str, ...]]]:
        return Scrubber, (self._known,)

    def text(self, text: str) -> tuple[str, Hits]:
        """Plain text without secrets; the same object if it has none."""
        return _scrub(text, self._suspect(text.encode("utf-8", "surrogatepass")))

    def json(self, data: bytes) -> tuple[bytes, Hits]:
        """JSON text with no secret in its string values; the same object if it has none.

        Everything else, keys too, stays as it is, byte for byte. ValueError if it is no JSON, as far as that is seen.
        """
        suspects = self._suspect(data)
        if _is_escaped(data):
            suspects = _Suspects(SHAPES, tuple(self._anchored))
        elif not any(suspects):
            return data, NOTHING
        text = data.decode()
        places = sorted(self._places(text, suspects))
        clean, hits = _scrub_strings(text, suspects, places) if places else (text, NOTHING)
        return (clean.encode(), hits) if hits else (data, NOTHING)

    def outcome(self, outcome: Outcome) -> tuple[Outcome, Hits]:
        """An outcome with no secret in what it says, their number added to its ``scrubbed``; or the same object."""
        if not self._may_say_one(outcome):
            return outcome, NOTHING
        result, in_result = self.json(outcome.result)
        stdout, in_stdout = self._stream(outcome.stdout)
        stderr, in_stderr = self._stream(outcome.stderr)
        error, in_error = self.text(outcome.error)
        hint, in_hint = self.text(outcome.hint)
        violations, in_violations = _each(self._violation, outcome.violations)
        contacts, in_contacts = _each(self._contact, outcome.contacts)
        attempts, in_attempts = _each(self._attempt, outcome.attempts)
        hits = in_result + in_stdout + in_stderr + in_error + in_hint + in_violations + in_contacts + in_attempts
        if not hits and stdout is outcome.stdout and stderr is outcome.stderr:
            return outcome, NOTHING
        return replace(
            outcome,
            result=result,
            stdout=stdout,
            stderr=stderr,
            error=error,
            hint=hint,
            violations=violations,
            contacts=contacts,
            attempts=attempts,
            scrubbed=outcome.scrubbed + hits.count,
        ), hits

    def _know(self, found: Iterable[str]) -> None:
        # The longest first: one may be part of another.
        ordered = sorted(set(found), key=lambda spelling: (-len(spelling), spelling))
        self._anchored = {spelling: anchors(spelling) for spelling in ordered}
        self._anchors = tuple({anchor: None for some in self._anchored.values() for anchor in some})
        heads = frozenset(anchor[:_HEAD] for anchor in self._anchors)
        self._heads = heads if all(len(head) == _HEAD for head in heads) else frozenset()

    def _may_say_one(self, outcome: Outcome) -> bool:
        """Whether anything the outcome says need be looked at: one search through all of it."""
        said = [outcome.error, outcome.hint]
        for violation in outcome.violations:
            said += (violation.what, violation.allow)
        for contact in outcome.contacts:
            said += (contact.host, contact.why, contact.allow)
        said += (attempt.error for attempt in outcome.attempts)
        texts = "\n".join(said).encode("utf-8", "surrogatepass")
        suspects = self._suspect(b"\n".join((outcome.result, outcome.stdout, outcome.stderr, texts)))
        return any(suspects) or _was_cut(outcome.stdout) or _was_cut(outcome.stderr) or _is_escaped(outcome.result)

    def _suspect(self, data: bytes) -> _Suspects:
        shapes: Sequence[Shape] = ()
        known: Sequence[str] = ()
        folded = data.lower()
        if _any_gate().search(folded):
            shapes = [
                shape for shape, gates in _GATED if any(gate in (folded if shape.any_case else data) for gate in gates)
            ]
        if self._may_hold_known(data):
            known = [spelling for spelling, some in self._anchored.items() if any(anchor in data for anchor in some)]
        return _Suspects(shapes, known)

    def _may_hold_known(self, data: bytes) -> bool:
        if self._heads and len(data) < 4 * len(self._anchors):
            # In a little data it is sooner looked at each place than for each anchor.
            return not self._heads.isdisjoint(data[start : start + _HEAD] for start in range(len(data) - _HEAD + 1))
        return any(map(data.__contains__, self._anchors))

    def _places(self, text: str, suspects: _Suspects) -> Iterator[int]:
        """Where in a JSON text a literal stands that a secret may hang on."""
        folded = fold(text)
        for shape in suspects.shapes:
            near = compiled(shape.near).finditer(folded if shape.any_case else text)
            yield from (match.start() for match in near)
        for anchor in {anchor: None for spelling in suspects.spellings for anchor in self._anchored[spelling]}:
            yield from (start for start, _ in _occurrences(anchor.decode("utf-8", "surrogateescape"), text))
        yield from (match.start() for match in compiled(_ESCAPED).finditer(text))

    def _stream(self, data: bytes) -> tuple[bytes, Hits]:
        """What was printed: bytes of which most are UTF-8."""
        suspects = self._suspect(data)
        if not any(suspects) and not _was_cut(data):
            return data, NOTHING
        text, cut = data.decode("utf-8", "surrogateescape"), NOTHING
        if _was_cut(data):
            text, cut = self._without_rest(text)
        clean, found = _scrub(text, suspects)
        if _was_cut(data):
            clean = _without_fragment(clean)
        return (data, NOTHING) if clean == text and not cut else (clean.encode("utf-8", "surrogateescape"), cut + found)

    def _without_rest(self, text: str) -> tuple[str, Hits]:
        """A text that may begin in the middle of a known value, without the rest of that."""
        rests = (rest for spelling in self._anchored for rest in _rests(spelling, text[:_REST_LEAST]))
        length = max((len(rest) for rest in rests if text.startswith(rest)), default=0)
        return (_mark(_KNOWN) + text[length:], Hits((_KNOWN,))) if length else (text, NOTHING)

    def _violation(self, violation: Violation) -> tuple[Violation, Hits]:
        what, in_what = self.text(violation.what)
        allow, in_allow = self.text(violation.allow)
        return Violation(what, allow), in_what + in_allow

    def _contact(self, contact: Contact) -> tuple[Contact, Hits]:
        host, in_host = self.text(contact.host)
        why, in_why = self.text(contact.why)
        allow, in_allow = self.text(contact.allow)
        return replace(contact, host=host, why=why, allow=allow), in_host + in_why + in_allow

    def _attempt(self, attempt: Attempt) -> tuple[Attempt, Hits]:
        error, hits = self.text(attempt.error)
        return replace(attempt, error=error), hits


def _each(
    scrub: Callable[[_Record], tuple[_Record, Hits]], records: Iterable[_Record]
) -> tuple[tuple[_Record, ...], Hits]:
    scrubbed = [scrub(record) for record in records]
    return tuple(record for record, _ in scrubbed), sum((hits for _, hits in scrubbed), NOTHING)


def _mark(name: str) -> str:
    return f"[secret:{name}]"


def _was_cut(stream: bytes) -> bool:
    """Whether the beginning of what was printed was most likely dropped."""
    return len(stream) == STREAM_KEPT


def _without_fragment(text: str) -> str:
    """What begins in the middle of a line, without the rest of that line: no shape is known by its end alone.

    Of a line that goes on and on, without the rest of its first word.
    """
    if text.startswith("[secret:"):
        return text
    end = text.find("\n", 0, _REST_MOST)
    if end < 0:
        word = compiled(_WORD).match(text)
        end = word.end() if word is not None else 0
    return "…" + text[end:] if 0 < end <= _REST_MOST else text


@cache
def _any_gate() -> re.Pattern[bytes]:
    """One search for all gates; those that begin alike stand together, which makes it twice as fast."""
    begun = (
        (first, [re.escape(gate[1:]) for gate in gates]) for first, gates in groupby(_GATES, lambda gate: gate[:1])
    )
    return re.compile(b"|".join(re.escape(first) + b"(?:" + b"|".join(rests) + b")" for first, rests in begun))


def _is_escaped(data: bytes) -> bool:
    return b"\\u00" in data and re.search(_ESCAPED.encode(), data) is not None


# -- plain text ----------------------------------------------------------------------------------------------------


def _scrub(text: str, suspects: _Suspects) -> tuple[str, Hits]:
    if len(text) < SHORTEST or not any(suspects):
        return text, NOTHING
    folded = text.lower()
    known = list(filter(text.__contains__, suspects.spellings))
    shapes = [
        shape for shape in suspects.shapes if any(gate in (folded if shape.any_case else text) for gate in shape.gates)
    ]
    names: list[str] = []
    masked = compiled(_REPLACED).sub(lambda mark: _MASK * len(mark[0]), text)
    finders: list[tuple[str, Find]] = [(_KNOWN, partial(_occurrences, spelling)) for spelling in known]
    for name, find in (*finders, *((shape.name, shape.find) for shape in shapes)):
        if spans := list(find(masked)):
            mark = _mark(name)
            text, masked = replaced(text, spans, mark), replaced(masked, spans, _MASK * len(mark))
            names += [name] * len(spans)
    return text, Hits(tuple(names)) if names else NOTHING


def _occurrences(value: str, text: str) -> Iterator[Span]:
    # Not by a pattern: re keeps those it has compiled, and what is known stays where it belongs.
    start = text.find(value)
    while start >= 0:
        yield start, start + len(value)
        start = text.find(value, start + len(value))


def _rests(value: str, beginning: str) -> Iterator[str]:
    """What a value ends with, as far as it begins like this."""
    start = value.find(beginning, max(1, len(value) - _REST_MOST))
    while start >= 0:
        yield value[start:]
        start = value.find(beginning, start + 1)


# -- the strings of JSON text --------------------------------------------------------------------------------------


def _scrub_strings(text: str, suspects: _Suspects, places: Iterable[int]) -> tuple[str, Hits]:
    """Scrub the strings in which these places are, and those that such a string is the name of."""
    strings = JsonStrings(text)
    names: list[str] = []
    done = -1
    for found in sorted({strings.at(place) for place in places} - {-1}):
        named = strings.is_key(found)
        number = found + named
        if number > done and (not named or strings.is_named(number)):
            done, hits = _scrub_string(strings, number, suspects, named=named)
            names += hits.names
    return strings.joined(), Hits(tuple(names))


def _scrub_string(strings: JsonStrings, number: int, suspects: _Suspects, *, named: bool) -> tuple[int, Hits]:
    """Scrub one string, and the lines of a private key that follow; the number of the last one that was."""
    value = strings[number]
    clean, hits = _scrub(value, suspects)
    if named and is_secret(strings[number - 1], clean) and not compiled(_REPLACED).fullmatch(clean):
        clean, hits = _mark(_NAMED), Hits((_NAMED,))
    if hits:
        strings[number] = clean
    if _KEY in hits.names and leaves_key_open(value):
        number = _scrub_lines_of_key(strings, number)
    return number, hits


def _scrub_lines_of_key(strings: JsonStrings, number: int) -> int:
    """Replace what follows the first line of a private key that is written as a list of lines; the last line's number.

    They are not counted: the key was.
    """
    last = number
    for line in range(number + 1, len(strings)):
        if not strings.is_key(line):
            if not continues_key(strings[line]):
                break
            ends = strings[line].lstrip().startswith("-----END")
            strings[line] = _mark(_KEY)
            last = line
            if ends:
                break
    return last
