"""Takes personal data out of what leaves a run: addresses, cards, accounts, numbers by which somebody is found.

Only there: what state keeps, and what a dependent gets, has all of it. Every pattern takes time in proportion to the
text, and begins with a character that it looks for, not with what may stand before that: so re skips to the next
candidate. What has a check digit is checked. Digits without the punctuation of their kind are taken for what they most
often are: a version, a time, an id.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from itertools import compress, groupby, islice
from typing import Final, NamedTuple

from sage_sandbox.results.shapes import compiled

Replace = Callable[[str], tuple[str, int]]
"""A text with a mark in the place of each one; how many there were."""

_ROUNDS: Final = 3
"""How often it is looked: of two numbers side by side one may hide the other, until it is replaced."""

MARGIN: Final = 320
"""How far across a cut it is looked: an e-mail address has 64 + 1 + 255 characters at most (RFC 5321, 4.5.3.1)."""

_AT_ONCE: Final = 4096
_FEW: Final = 16
"""How many candidates are checked together, so that they take little memory; how many are sooner done one by one."""

# One of these is in every text that has anything of it: an @, seven digits in a row but for what parts groups of them,
# or the beginning of an IBAN.
_IBAN_BEGINS: Final = "[A-Z][A-Z][0-9][0-9] ?[A-Z0-9]{4} ?[A-Z0-9]{4}"
_MAY_HOLD: Final = f"@|[0-9][0-9 .()/-]{{6}}|{_IBAN_BEGINS}".encode()


class Kind(NamedTuple):
    """One kind of personal data, by a pattern.

    ``gate`` is a pattern that is in every text that has one of them, and much smaller: where it finds nothing the other
    is not even compiled, which may take milliseconds. Empty: there is none.
    """

    name: str
    pattern: str
    replace: Replace
    gate: str = ""


def _plain(name: str, pattern: str, gate: str = "") -> Kind:
    """What its pattern says all about: re replaces it in a loop in C."""
    return Kind(name, pattern, lambda text: compiled(pattern).subn(f"[{name}]", text), gate)


def _checked(name: str, pattern: str, are_right: Callable[[Sequence[str]], Iterable[object]], gate: str = "") -> Kind:
    """What has check digits: many are checked together, for a call in Python for each would be most of the time."""

    def replace(text: str) -> tuple[str, int]:
        parts, done = [], 0
        candidates = compiled(pattern).finditer(text)
        while some := list(islice(candidates, _AT_ONCE)):
            for match in compress(some, are_right([match[0] for match in some])):
                start, end = match.span()
                parts.append(text[done:start])
                done = end
        return (f"[{name}]".join((*parts, text[done:])) if parts else text), len(parts)

    return Kind(name, pattern, replace, gate)


# -- e-mail (RFC 5321; as RFC 6531 allows it, in Latin script) -----------------------------------------------------

_LOCAL: Final = r"[A-Za-z0-9._%+\xc0-\u024f-]"
_LABEL: Final = r"[A-Za-z0-9\xc0-\u024f][A-Za-z0-9\xc0-\u024f-]{0,62}+"
_DOMAIN: Final = rf"(?![0-9]{{1,9}}\.[0-9]|[0-9]x\.)(?:{_LABEL}\.){{1,30}}[A-Za-z]{{2,24}}"
# A login in a URL, and git's for everybody, are nobody's address; nor are a package's version (left-pad@1.3.0-rc) and a
# picture's scale (logo@2x.png).
_EMAIL: Final = (
    rf"{_LOCAL}(?<!{_LOCAL}{_LOCAL})(?<!//{_LOCAL})(?<!g(?=it@)){_LOCAL}{{0,63}}+@{_DOMAIN}"
    rf"(?:{_LOCAL}{{0,64}}+@{_DOMAIN}){{0,99}}+"  # and others that follow without anything between
)


# -- cards (ISO/IEC 7812-1: issuer, length, Luhn's check digit) ----------------------------------------------------

_CARD: Final = (
    r"[2-6](?<![\w.+-][2-6])(?:"
    # Visa; American Express; Diners Club; Mastercard; Discover, UnionPay, JCB
    r"(?<=4)[0-9]{3}(?:[0-9]{12}(?:[0-9]{3})?|([ -])[0-9]{4}\1[0-9]{4}\1[0-9]{4}(?:\1[0-9]{3})?)"
    r"|(?<=3)(?:[47][0-9]{2}(?:[0-9]{11}|([ -])[0-9]{6}\2[0-9]{5})"
    r"|(?:0[0-5]|[689][0-9])[0-9](?:[0-9]{10}|([ -])[0-9]{6}\3[0-9]{4}))"
    r"|(?:(?<=5)[1-5][0-9]{2}|(?<=2)(?:22[1-9]|2[3-9][0-9]|[3-6][0-9]{2}|7[01][0-9]|720))"
    r"(?:[0-9]{12}|([ -])[0-9]{4}\4[0-9]{4}\4[0-9]{4})"
    r"|(?:(?<=6)(?:011|4[4-9][0-9]|5[0-9]{2}|2[0-9]{2})|(?<=3)5[2-8][0-9])"
    r"(?:[0-9]{12,15}|([ -])[0-9]{4}\5[0-9]{4}\5[0-9]{4}(?:\5[0-9]{3})?)"
    r")(?!\w|[.-][0-9])"
)
_DIGITS: Final = 19
"""The most that a card has."""

_PLAIN: Final = bytes.maketrans(b"0123456789", bytes(range(10)))
_DOUBLED: Final = bytes.maketrans(b"0123456789", bytes([0, 2, 4, 6, 8, 1, 3, 5, 7, 9]))
_IS_TENS: Final = bytes(number % 10 == 0 for number in range(256))


def have_luhn_digits(cards: Sequence[str]) -> Iterable[object]:
    """Whether each card's last digit is what Luhn's formula (ISO/IEC 7812-1, annex B) gives for the others."""
    numbers = "\n".join(cards).encode().translate(None, b" -").split(b"\n")
    if len(numbers) < _FEW:
        return [
            _IS_TENS[sum(number[-1::-2].translate(_PLAIN) + number[-2::-2].translate(_DOUBLED))] for number in numbers
        ]
    # One byte for each card: the first digits of all are one large number, to which the second digits of all are added,
    # and so on. The sum of a card's digits, doubled or not, is at most 9 * 19, so that no byte overflows.
    block = b"".join([number.rjust(_DIGITS, b"0") for number in numbers])
    columns = (block[place::_DIGITS].translate((_DOUBLED, _PLAIN)[place % 2 == 0]) for place in range(_DIGITS))
    return sum(map(int.from_bytes, columns)).to_bytes(len(numbers)).translate(_IS_TENS)


# -- accounts (ISO 13616-1; how long they are where: SWIFT, "IBAN Registry") ---------------------------------------

_LENGTHS: Final[Mapping[int, str]] = {
    15: "NO", 16: "BE", 18: "DK FI FK FO GL NL SD", 19: "MK SI", 20: "AT BA EE KZ LT LU MN XK", 21: "CH HR LI LV",
    22: "BG BH CR DE GB GE IE ME RS VA", 23: "AE GI IL IQ OM SO TL", 24: "AD CZ ES MD PK RO SA SE SK TN VG",
    25: "LY PT ST", 26: "IS TR", 27: "BI DJ FR GR IT MC MR SM", 28: "AL AZ BY CY DO GT HN HU LB NI PL SV",
    29: "BR EG PS QA UA", 30: "JO KW MU YE", 31: "MT SC", 32: "LC", 33: "RU",
}  # fmt: skip
_LETTERS: Final = tuple((bytes([ord("A") + number]), b"%d" % (10 + number)) for number in range(26))


def _accounts() -> Iterator[str]:
    """For each second letter of a country what may follow: so re tries no country that has another one."""
    found: dict[str, list[str]] = {}
    for length, countries in _LENGTHS.items():
        for second, here in groupby(sorted(countries.split(), key=_second), key=_second):
            firsts = "".join(country[0] for country in here)
            rest = f"(?:{_solid(length - 4)}|{_grouped(length - 4)})"
            found.setdefault(second, []).append(f"(?<=[{firsts}]{second}[0-9][0-9]){rest}")
    for second, rests in sorted(found.items()):
        yield f"{second}[0-9][0-9](?:{'|'.join(rests)})"


def _second(country: str) -> str:
    return country[1]


def _solid(length: int) -> str:
    return f"[A-Z0-9]{{{length}}}(?![A-Za-z0-9])"


def _grouped(length: int) -> str:
    """In groups of four. Whether it ends where it should is seen first: that takes no time."""
    groups, rest = divmod(length, 4)
    ends = f"(?=(?s:.{{{5 * groups + (rest + 1 if rest else 0)}}})(?![A-Za-z0-9]))"
    return ends + f"(?: [A-Z0-9]{{4}}){{{groups}}}" + (f" [A-Z0-9]{{{rest}}}" if rest else "")


_IBAN: Final = f"[A-Z](?<![A-Za-z0-9][A-Z])(?:{'|'.join(_accounts())})"


def have_iban_digits(ibans: Sequence[str]) -> Iterable[object]:
    """Whether the two digits behind each country are those that ISO 7064 (MOD 97-10) gives for the rest."""
    numbers = "\n".join([iban[4:] + iban[:4] for iban in ibans]).encode().replace(b" ", b"")
    for letter, number in _LETTERS:
        if letter in numbers:  # to replace what is not there takes ten times as long as to see that it is not
            numbers = numbers.replace(letter, number)
    return [number % 97 == 1 for number in map(int, numbers.split(b"\n"))]


# -- social security numbers of the USA (SSA, "Social Security Number Randomization") ------------------------------

_SSN: Final = r"[0-8](?<![\w.+-][0-8])[0-9]{2}-(?<!000-)(?<!666-)(?!00)[0-9]{2}-(?!0000)[0-9]{4}(?![\w-]|\.[0-9])"


# -- telephone (ITU-T E.164, and E.123 for how it is written; NANP in North America) -------------------------------

_NO_MORE: Final = r"(?![\w-]|\.[0-9])"
_NANP: Final = r"[2-9][0-9]{2}\)?[ .-]?[2-9][0-9]{2}[ .-]?[0-9]{4}"
_TRUNK: Final = r"0(?<![\w.,+/:(-]0)(?<![0-9] 0)[1-9]"
_END: Final = r"(?![\w:-]|[ .,/][0-9])"
_PHONES: Final = (
    rf"\+(?<![\w+]\+)1[ .-]?\(?{_NANP}{_NO_MORE}",
    # Ten digits and more, or some in groups; but not the date in a line that a diff adds.
    (
        r"\+(?<![\w+]\+)[2-9](?!0[0-9]{2}-[01][0-9]-)"
        r"(?:[0-9]{9,14}|[0-9]{0,8}[ ./-]?\(?(?:[0-9]\)?[ ./-]?\(?){6,15}?[0-9])(?![\w:]|[ ./-][0-9])"
    ),
    rf"1(?<![\w.+/-]1)[ .-]\(?[2-9][0-9]{{2}}\)?[ .-][2-9][0-9]{{2}}[ .-][0-9]{{4}}{_NO_MORE}",
    rf"[2-9](?<![\w.+/-][2-9])[0-9]{{2}}([.-])[2-9][0-9]{{2}}\1[0-9]{{4}}{_NO_MORE}",
    rf"\((?<!\w\()[2-9][0-9]{{2}}\) ?[2-9][0-9]{{2}}[ .-][0-9]{{4}}{_NO_MORE}",
    # France: five pairs.
    rf"{_TRUNK}([ .-])[0-9]{{2}}\1[0-9]{{2}}\1[0-9]{{2}}\1[0-9]{{2}}{_END}",
    # Great Britain: 020 7946 0958, 0161 496 0000, 07700 900123. Germany: 030 901820, 0171/1234567.
    (
        rf"{_TRUNK}[0-9](?: [0-9]{{4}} [0-9]{{4}}|[0-9] [0-9]{{3}} [0-9]{{4}}|[0-9]{{2}} [0-9]{{3}} [0-9]{{3}}"
        rf"|[0-9]{{0,2}}[ /][0-9]{{6,8}}){_END}"
    ),
    # Either with its area in brackets.
    rf"\((?<!\w\()0[1-9][0-9]{{1,4}}\) ?[0-9]{{3,8}}(?:[ -][0-9]{{3,4}}){{0,2}}{_END}",
)

KINDS: Final = (
    _plain("email", _EMAIL, "@"),
    _checked("iban", _IBAN, have_iban_digits, _IBAN_BEGINS),
    _checked("card", _CARD, have_luhn_digits),
    _plain("ssn", _SSN),
    *(_plain("phone", pattern) for pattern in _PHONES),
)


def may_hold(data: bytes) -> bool:
    """Whether it need be looked at more closely: any text, or JSON text as it is."""
    return _gate().search(data) is not None or b"\\u00" in data


@cache
def _gate() -> re.Pattern[bytes]:
    return re.compile(_MAY_HOLD)


class Cleaner:
    """Replaces personal data by ``[KIND]``, and counts what it replaced."""

    def __init__(self) -> None:
        self.found: Counter[str] = Counter()

    def begin(self) -> None:
        """Forget what was replaced so far."""
        self.found.clear()

    def text(self, text: str) -> str:
        """A text without personal data; the same object if there is none in it."""
        if not may_hold(text.encode("utf-8", "surrogatepass")):
            return text
        for _ in range(_ROUNDS):
            before = text
            for kind in KINDS:
                text = self._without(kind, text)
            if text is before:
                break
        return text

    def _without(self, kind: Kind, text: str) -> str:
        if kind.gate and not compiled(kind.gate).search(text):
            return text
        clean, found = kind.replace(text)
        if not found:
            return text
        self.found[kind.name] += found
        return clean

    def head(self, text: str, most: int) -> str:
        """The beginning of a text: not more than so many characters, and nothing of what stands across the cut."""
        if len(text) <= most:
            return self.text(text)
        window = self.text(text[: most + MARGIN])
        return window[: max(0, min(most, len(window) - MARGIN))]

    def tail(self, text: str, most: int) -> str:
        """The end of a text, likewise."""
        if len(text) <= most:
            return self.text(text)
        window = self.text(text[-most - MARGIN :])
        return window[len(window) - max(0, min(most, len(window) - MARGIN)) :]


def cleaned(text: str) -> str:
    """A text without personal data, where nobody asks how much there was."""
    return Cleaner().text(text)
