"""What is personal data, and what only looks like it. Samples are published test numbers and reserved ranges."""

from __future__ import annotations

import string

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sage_sandbox.results.personal import (
    KINDS,
    MARGIN,
    Cleaner,
    cleaned,
    have_iban_digits,
    have_luhn_digits,
    may_hold,
)
from sage_sandbox.results.scrub import NOTHING, Scrubber
from sage_sandbox.results.shapes import compiled

EMAILS = [
    "alice@example.org", "bob.smith+tag@mail.example.co.uk", "a_b-c%d@xn--bcher-kva.example", "jürgen@müller.example",
    "1@example.com", "x" * 64 + "@example.org", "12345@163.com",
]  # fmt: skip
# What payment processors publish for testing (Stripe, "Test cards"; PayPal, "Test credit card numbers").
CARDS = [
    "4111111111111111", "4242424242424242", "5555555555554444", "2223003122003222", "378282246310005",
    "30569309025904", "38520000023237", "6011111111111117", "3530111333300000", "6200000000000005", "6555900000604105",
    "4111 1111 1111 1111", "5555-5555-5555-4444", "3782 822463 10005", "3056 930902 5904", "6011 1111 1111 1117",
]  # fmt: skip
# SWIFT, "IBAN Registry": the examples of each country.
IBANS = [
    "AD1200012030200359100100", "BE68539007547034", "CH9300762011623852957", "DE89370400440532013000",
    "ES9121000418450200051332", "FR1420041010050500013M02606", "GB29NWBK60161331926819", "IT60X0542811101000000123456",
    "MT84MALT011000012345MTLCAST001S", "NL91ABNA0417164300", "NO9386011117947", "SE4550000000058398257466",
    "DE89 3704 0044 0532 0130 00", "BE68 5390 0754 7034", "NO93 8601 1117 947", "FR14 2004 1010 0505 0001 3M02 606",
]  # fmt: skip
SSNS = ["078-05-1120", "219-09-9999", "123-45-6789"]
# Ofcom's numbers for drama, 555-01XX, ARCEP's for audiovisual works, the Bundesnetzagentur's for the same.
PHONES = [
    "+12025550123", "+1 202 555 0123", "+1 (202) 555-0123", "+44 20 7946 0958", "+442079460958", "+49 30 23125 000",
    "+49 (0) 30 23125000", "+33 1 99 00 12 34", "+33.1.99.00.12.34", "+45 12 34 56 78", "(202) 555-0123",
    "202-555-0123", "202.555.0123", "1-202-555-0123", "1 (202) 555-0123", "01 99 00 12 34", "01.99.00.12.34",
    "020 7946 0958", "0161 496 0000", "07700 900123", "01632 960 983", "030 23125000", "0171/3920000", "(030) 23125000",
    "(020) 7946 0958",
]  # fmt: skip
ALL = [
    *(("email", text) for text in EMAILS), *(("card", text) for text in CARDS), *(("iban", text) for text in IBANS),
    *(("ssn", text) for text in SSNS), *(("phone", text) for text in PHONES),
]  # fmt: skip

HARMLESS = [
    # no addresses
    "left-pad@1.3.0-rc.beta", "logo@2x.png", "git@github.com:owner/name.git", "ssh://deploy@host.example.org/x",
    "@decorator.name", "a@b", "user@localhost", "x = a @ b.T", "@@ -100,7 +100,8 @@", "@example.org", "a@.org",
    # numbers of other kinds
    "4111111111111112", "4111 1111 1111 1112", "4111-1111 1111 1111", "1234567890123456", "41111111111111111",
    "0.4111111111111111", "id-4111111111111111", "x4111111111111111", "12345678-4111-1111-1111-111111111111",
    "123e4567-e89b-12d3-a456-426614174000", "3f2a9c1b0d4e5f60718293a4b5c6d7e8f9012345", "9780306406157",
    "DE89370400440532013001", "DE8937040044053201300", "XX89370400440532013000", "xDE89370400440532013000",
    "DE893704004405320130001", "DE89 3704 0044 0532 0130 01",
    "000-12-3456", "666-12-3456", "987-65-4321", "123-00-4567", "123-45-0000", "123-45-67890", "12-345-6789",
    "1123-45-6789",
    # versions, times, places, counts
    "1.2.3", "10.15.7.1234", "2.415.555.2671", "v202.555.0123", "202.555.0123.4", "127.0.0.1:8080", "192.168.100.200",
    "2026-11-28", "2026-11-28 12:51:20 +0000", "2026-11-28T12:51:20.123456+02:00", "20261128125120",
    "1764334280123456789",
    "+2026-11-28 12:51", "+1234567890", "+100,000", "1e+10000000000", "1+4915112345678", "a+b", "+12345",
    "01-02-03-04-05-06", "00 01 02 03 04 05 06 07", "01 02 03 04 05 06", "0000000 067543 020157", "0001 0002 0003 0004",
    "12 345 678", "1 234 567 890", "202 555 0123", "202-555-012", "102-555-0123", "202-155-0123", "2025550123",
    "(12) 345-6789", "f(202) 555-0123", "0x01 99", "-rw-r--r-- 1 root root 4096 2026-11-28 12:51",
]  # fmt: skip


@pytest.mark.parametrize(("kind", "text"), ALL)
@pytest.mark.parametrize("around", ["{}", "see {}, please", "<{}>", '"{}"', "x={};", "to: {}.", "{}\nok"])
def test_what_is_personal_is_replaced_and_counted(kind: str, text: str, around: str) -> None:
    cleaner = Cleaner()

    assert around.format(f"[{kind}]") == cleaner.text(around.format(text))
    assert {kind: 1} == cleaner.found


@pytest.mark.parametrize("text", HARMLESS)
def test_what_only_looks_like_it_is_left(text: str) -> None:
    said = f"see {text} there"

    assert said is cleaned(said) or said == cleaned(said)
    assert text == cleaned(text)


def test_what_follows_an_account_is_no_part_of_it() -> None:
    assert "[iban] PAID ON TIME" == cleaned("BE68 5390 0754 7034 PAID ON TIME")
    assert "[iban] [iban] [iban]" == cleaned("BE68 5390 0754 7034 DE89 3704 0044 0532 0130 00 BE68539007547034")


def test_many_kinds_stand_side_by_side() -> None:
    cleaner = Cleaner()
    text = "alice@example.org, bob@example.org: 4111111111111111, 078-05-1120, +1 202 555 0123, NO9386011117947"

    assert "[email], [email]: [card], [ssn], [phone], [iban]" == cleaner.text(text)
    assert {"email": 2, "card": 1, "ssn": 1, "phone": 1, "iban": 1} == cleaner.found
    cleaner.begin()
    assert {} == cleaner.found


def has_luhn_digit(card: str) -> bool:
    (right,) = have_luhn_digits([card])
    return bool(right)


def has_iban_digits(iban: str) -> bool:
    (right,) = have_iban_digits([iban])
    return bool(right)


def luhn_by_the_book(card: str) -> bool:
    digits = [int(digit) for digit in reversed(card) if digit.isdigit()]
    doubled = [sum(divmod(2 * digit, 10)) for digit in digits[1::2]]
    return (sum(digits[::2]) + sum(doubled)) % 10 == 0


def iban_by_the_book(iban: str) -> bool:
    plain = iban.replace(" ", "")
    return int("".join(str(int(character, 36)) for character in plain[4:] + plain[:4])) % 97 == 1


NUMBERS = st.from_regex(r"[2-6][0-9]{12,18}|[2-6][0-9]{3}([ -][0-9]{4}){3}", fullmatch=True)
ACCOUNTS = st.from_regex(r"[A-Z]{2}[0-9]{2}([A-Z0-9]{11,29}|( [A-Z0-9]{4}){3,6}( [A-Z0-9]{1,3})?)", fullmatch=True)


@given(st.lists(NUMBERS | st.sampled_from(CARDS), min_size=1, max_size=40))
def test_many_cards_are_checked_as_one_is(cards: list[str]) -> None:
    assert [luhn_by_the_book(card) for card in cards] == [bool(right) for right in have_luhn_digits(cards)][
        : len(cards)
    ]


@given(st.lists(ACCOUNTS | st.sampled_from(IBANS), min_size=1, max_size=20))
def test_many_accounts_are_checked_as_one_is(ibans: list[str]) -> None:
    assert [iban_by_the_book(iban) for iban in ibans] == [bool(right) for right in have_iban_digits(ibans)]


@pytest.mark.parametrize(("name", "right", "wrong"), [
    ("card", "4111111111111111", "4111111111111112"), ("iban", "NO9386011117947", "NO9386011117948"),
])  # fmt: skip
@pytest.mark.parametrize("many", [15, 16, 4095, 4096, 4097])
def test_of_very_many_the_right_ones_are_replaced(name: str, right: str, wrong: str, many: int) -> None:
    kind = next(kind for kind in KINDS if kind.name == name)
    said = [right if number % 3 else wrong for number in range(many)]

    assert (", ".join(said).replace(right, f"[{name}]"), said.count(right)) == kind.replace(", ".join(said))


@given(st.from_regex(r"[2-6][0-9]{15}", fullmatch=True))
@example("4111111111111111")
def test_one_digit_changed_is_no_card(digits: str) -> None:
    right = next(digits[:-1] + last for last in string.digits if has_luhn_digit(digits[:-1] + last))

    assert 1 == sum(has_luhn_digit(right[:-1] + last) for last in string.digits)
    for place in range(0, 16, 5):
        wrong = right[:place] + str((int(right[place]) + 1) % 10) + right[place + 1 :]
        assert not has_luhn_digit(wrong)


@given(st.sampled_from([text for text in IBANS if " " not in text]), st.data())
def test_one_character_changed_is_no_account(iban: str, data: st.DataObject) -> None:
    place = data.draw(st.integers(2, len(iban) - 1))
    alphabet = string.digits if iban[place].isdigit() else string.ascii_uppercase
    other = data.draw(st.sampled_from(alphabet.replace(iban[place], "")))
    changed = iban[:place] + other + iban[place + 1 :]

    assert has_iban_digits(iban)
    assert not has_iban_digits(changed)
    assert "[iban]" not in cleaned(changed)


@given(st.sampled_from(CARDS[:9]))
def test_one_digit_less_or_more_is_no_card(card: str) -> None:
    assert "[card]" not in cleaned(card[:-1])
    assert "[card]" not in cleaned(card + "1234")


FRAGMENTS = st.sampled_from([text for _, text in ALL] + HARMLESS + ["@", ".", "-", "+", " ", "(", "0", "[email]", "é"])


@given(st.lists(FRAGMENTS, max_size=6).map(" ".join))
def test_of_two_side_by_side_none_hides_the_other(text: str) -> None:
    clean = cleaned(text)

    assert clean == cleaned(clean)


@given(st.lists(FRAGMENTS | st.text(max_size=3), max_size=8).map("".join))
def test_marks_of_secrets_stay_and_none_is_made(text: str) -> None:
    clean = cleaned(text)

    assert (clean, NOTHING) == Scrubber().text(Scrubber().text(clean)[0])
    for mark in ("[secret:known]", "[secret:aws-key]"):
        assert mark in cleaned(f"{text} {mark} {text}")


@given(st.lists(FRAGMENTS, max_size=6).map(" ".join))
def test_where_it_need_not_be_looked_there_is_nothing(text: str) -> None:
    if not may_hold(text.encode()):
        assert not any(kind.replace(text)[1] for kind in KINDS)


@given(st.lists(FRAGMENTS, max_size=6).map(" ".join))
def test_where_a_gate_is_closed_there_is_none_of_that_kind(text: str) -> None:
    for kind in KINDS:
        if kind.gate and not compiled(kind.gate).search(text):
            assert (text, 0) == kind.replace(text)


@pytest.mark.parametrize(("kind", "text"), ALL)
def test_what_stands_across_a_cut_is_not_shown_in_part(kind: str, text: str) -> None:
    before, after = "word " * 200, " word" * 200
    whole = before + text + after
    for cut in range(len(before), len(before) + len(text) + 1):
        head, tail = Cleaner().head(whole, cut), Cleaner().tail(whole, len(whole) - cut)

        assert text[:6] not in head[len(before) :]
        assert text[-6:] not in tail
        assert len(head) <= cut


def test_what_is_short_enough_is_not_cut() -> None:
    assert "to [email]" == Cleaner().head("to alice@example.org", 100) == Cleaner().tail("to alice@example.org", 100)
    assert "x" * 10 == Cleaner().head("x" * (MARGIN + 20), 10) == Cleaner().tail("x" * (MARGIN + 20), 10)


ATTACKS = [
    "@", "@a", "@a.", "a@", "a@a", "a@a.", "a.a", "a@b.cc", "alice@example.org ", "//a@", "@1.", "@-", "ü", "ü@ü.",
    "4111111111111111 ", "4111111111111112 ", "4111 ", "4111-1111-", "3782 822463 ", "4", "2", "6", "5",
    "DE89", "DE89 ", "GB82 ", "NO93 8601 1117 948 ",
    "DE89 3704 0044 0532 0130 01 ", "NO00", "AAAA", "A1", "078-05-1120 ", "078-05-", "1-", "0-",
    "+", "+1", "+1 ", "+1(", "+4", "+49 ", "+4(0)", "(202) ", "(", "(0", "(030) ", "202-", "202.555.", "1 (202) 555-",
    "0", "01 ", "01.99.", "020 7946 ", "07700 ", "0171/", " ", "\n",
]  # fmt: skip


@pytest.mark.parametrize("part", ATTACKS, ids=repr)
@pytest.mark.parametrize("end", ["", "!", "x", "0"], ids=["", "bang", "letter", "digit"])
def test_no_pattern_takes_more_than_time_in_proportion(part: str, end: str) -> None:
    """A quarter of a megabyte: a pattern that scans on from each of its beginnings takes minutes. It ends at all."""
    text = part * ((1 << 18) // len(part)) + end

    assert all(kind.replace(text)[1] >= 0 for kind in KINDS)


def test_what_repeats_is_bounded_or_gives_nothing_back() -> None:
    for kind in KINDS:
        assert not any(loop in kind.pattern.replace("++", "").replace("}+", "}") for loop in ("*", "]+", ")+"))
        assert compiled(kind.pattern).pattern == kind.pattern
