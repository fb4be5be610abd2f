"""A reader finds whatever is wrong, says it once, and is not harmed by it."""

from __future__ import annotations

import pytest

from sage_sandbox.audit import checking

KEY = bytes(range(32))


def verify(place, key=KEY):
    return checking.verify(place.folder, place.user, key)


def test_each_changed_byte_of_a_log_is_found(place):
    whole = place.filled(3)
    for at in range(len(whole)):
        place.path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        found = verify(place)
        assert found.problems, at


def test_each_cut_is_found(place):
    whole = place.filled(3)
    for end in range(1, len(whole)):
        place.path.write_bytes(whole[:end])
        assert verify(place).problems, end


def test_a_head_that_is_older_than_the_log_is_fine(place):
    opened = place.open()
    opened.write("start", "a", durable=True)
    opened.write("state", "b")

    assert (2, ()) == (verify(place).entries, verify(place).problems)


def test_what_is_missing_at_the_start_is_counted_also_after_a_line_that_was_changed(place):
    lines = place.filled(6).splitlines(keepends=True)
    place.path.write_bytes(lines[3].replace(b"entry 4", b"nothing") + lines[4] + lines[5])

    assert ["was changed, or was not written by this log", "is entry 5: 3 before it are missing"] == [
        problem for _, problem in verify(place).problems
    ]


def test_a_wrong_key_is_said_to_be_one(place):
    place.filled(3)

    ((number, problem),) = verify(place, bytes(32)).problems
    assert number == 0
    assert problem.startswith("none of the 3 lines was written with this key")


def test_rubbish_is_not_listed_without_end(place):
    whole = place.filled(1)
    place.path.write_bytes(whole + b"rubbish\n" * 5_000)

    *listed, more = verify(place).problems
    assert checking.PROBLEMS_MAX == len(listed)
    assert (0, "4900 more lines are wrong") == more


def test_a_hole_without_end_is_not_read_to_its_end(place):
    whole = place.filled(1)
    with place.path.open("r+b") as file:
        file.truncate(1 << 40)

    assert ((2, "is longer than 64 KiB"),) == verify(place).problems
    assert len(whole) < 1 << 40


def test_a_log_that_is_gone_is_told_from_one_that_never_was(place):
    never = checking.gone(place.user)
    place.filled(3)
    place.path.unlink()

    assert never is None
    assert checking.Verdict(problems=((0, "the log is gone: it had 3 entries"),)) == checking.gone(place.user)
    with pytest.raises(FileNotFoundError):
        verify(place)


def test_entries_are_shown_without_a_key_and_rubbish_is_passed_over(place):
    whole = place.filled(2)
    place.path.write_bytes(whole + b"rubbish\n[]\n")

    assert ["entry 1", "entry 2"] == [entry.text for entry in checking.entries(place.folder)]
    assert [] == list(checking.entries(place.folder, "another"))
