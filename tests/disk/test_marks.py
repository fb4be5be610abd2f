"""Whatever a write left half-done, a mark is the last record or the one before it."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from sage_sandbox.disk.files import Folder, Untrusted
from sage_sandbox.disk.marks import SLOT, Mark
from sage_sandbox.errors import StateCorrupted

FIELDS = st.lists(st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=34), max_size=5)


def slot(text):
    checksum = hashlib.sha256(text.encode()).hexdigest()[:32]
    return f"{text} {checksum}".ljust(255).encode() + b"\n"


@pytest.fixture
def path(folder):
    return Path(folder.path, "mark")


@pytest.fixture
def mark(folder):
    with Mark.open(folder, "mark", make=True) as opened:
        yield opened


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    """A mark for many examples: each writes the file anew."""
    with Folder.open(tmp_path_factory.mktemp("own")) as folder, Mark.open(folder, "mark", make=True) as opened:
        yield opened


def test_a_new_one_holds_nothing(mark, path):
    assert mark.read() is None
    assert path.read_bytes() == slot("0") * 2
    assert path.stat().st_mode & 0o777 == 0o600


def test_what_was_written_is_read(mark, folder):
    mark.write(("run", "12", "3"))

    assert mark.read() == ("run", "12", "3")
    with Mark.open(folder, "mark") as other:
        assert other.read() == ("run", "12", "3")


def test_a_record_of_no_fields_is_a_record(mark):
    mark.write(())

    assert mark.read() == ()


def test_the_older_slot_is_overwritten(mark, path):
    seen = []
    for number in range(4):
        mark.write((f"n{number}",))
        seen.append(path.read_bytes())

    assert seen == [
        slot("1 n0") + slot("0"),
        slot("1 n0") + slot("2 n1"),
        slot("3 n2") + slot("2 n1"),
        slot("3 n2") + slot("4 n3"),
    ]


def test_a_reader_sees_what_is_written_meanwhile(mark, folder):
    with Mark.open(folder, "mark") as reader:
        for number in range(5):
            mark.write((str(number),))

            assert reader.read() == (str(number),)


def test_it_goes_on_counting_when_it_is_opened_again(mark, folder, path):
    mark.write(("a",))
    with Mark.open(folder, "mark", make=True) as again:
        again.write(("b",))

        assert again.read() == ("b",)
    assert path.read_bytes() == slot("1 a") + slot("2 b")


def test_a_missing_one_is_missing(folder):
    with pytest.raises(FileNotFoundError):
        Mark.open(folder, "mark")
    assert folder.names() == []


def test_a_reader_cannot_write(mark, folder):
    with Mark.open(folder, "mark") as reader, pytest.raises(OSError, match="Bad file descriptor"):
        reader.write(("x",))


def test_a_new_one_is_durable(folder, synced):
    Mark.open(folder, "mark", make=True).close()

    assert synced[0].startswith(f"{folder.path}/mark.")
    assert synced[1:] == [folder.path]


@pytest.mark.parametrize("sync", [True, False])
def test_a_write_is_durable_where_that_is_asked_for(mark, monkeypatch, sync):
    synced = []  # type: ignore[var-annotated]
    monkeypatch.setattr(os, "fsync", synced.append)

    mark.write(("x",), sync=sync)

    assert [mark._fd] * sync == synced


@pytest.mark.parametrize("field", ["", "a b", "a\n", "\x1b", "é", "\x7f", " "])
def test_a_field_that_is_no_word_of_ascii_is_refused(mark, field):
    with pytest.raises(ValueError, match="is not a field of a mark"):
        mark.write(("a", field))
    assert mark.read() is None


def test_what_does_not_fit_is_refused(mark):
    longest = "x" * (255 - len("1 ") - len(" ") - 32)
    with pytest.raises(ValueError, match="does not fit into 256"):
        mark.write((longest + "x",))

    mark.write((longest,))

    assert mark.read() == (longest,)


def test_it_is_closed_once(mark, folder):
    mark.close()
    reused = os.dup(folder.fd)
    mark.close()

    os.fstat(reused)
    os.close(reused)


def test_a_link_in_its_place_is_refused(folder, path):
    path.symlink_to("elsewhere")

    with pytest.raises(Untrusted, match="is a symbolic link"):
        Mark.open(folder, "mark", make=True)
    assert not path.with_name("elsewhere").exists()


@given(before=st.lists(FIELDS, max_size=4), new=FIELDS, after=FIELDS, cut=st.integers(0, SLOT))
def test_a_torn_write_leaves_the_record_or_the_one_before_it(scratch, before, new, after, cut):
    os.pwrite(scratch._fd, slot("0") * 2, 0)
    for fields in before:
        scratch.write(fields)
    known, old = scratch.read(), os.pread(scratch._fd, 2 * SLOT, 0)
    scratch.write(new)
    whole = os.pread(scratch._fd, 2 * SLOT, 0)
    start = 0 if whole[:SLOT] != old[:SLOT] else SLOT

    for length in range(SLOT + 1):
        os.pwrite(scratch._fd, whole[: start + length] + old[start + length :], 0)
        assert scratch.read() in (known, tuple(new))
    assert scratch.read() == tuple(new)

    # The next write overwrites what is torn, never the record that is whole.
    torn = whole[: start + cut] + old[start + cut :]
    os.pwrite(scratch._fd, torn, 0)
    scratch.write(after)
    assert scratch.read() == tuple(after)
    if torn != whole:
        assert old[SLOT - start : 2 * SLOT - start] == os.pread(scratch._fd, SLOT, SLOT - start)


@given(records=st.lists(FIELDS, min_size=2, max_size=3), rubbish=st.binary(max_size=2 * SLOT), first=st.booleans())
def test_rubbish_in_one_slot_leaves_the_other(scratch, records, rubbish, first):
    os.pwrite(scratch._fd, slot("0") * 2, 0)
    for fields in records:
        scratch.write(fields)
    start = 0 if first else SLOT
    assume(rubbish[:SLOT])

    os.pwrite(scratch._fd, rubbish[:SLOT], start)

    assert scratch.read() in [tuple(fields) for fields in records[-2:]]


def test_every_flipped_bit_is_noticed(scratch):
    good = slot("6 a b") + slot("7 c d")
    found = set()
    for bit in range(8 * len(good)):
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        os.pwrite(scratch._fd, bad, 0)
        found.add((bit // 8 // SLOT, scratch.read()))

    assert found == {(0, ("c", "d")), (1, ("a", "b"))}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 512,
        b" " * 512,
        slot("1 a")[:255],
        slot("1 a")[1:] + slot("1 a"),
        slot("01 a") * 2,
        slot("+1 a") * 2,
        slot("-1 a") * 2,
        slot("1_0 a") * 2,
        slot("x a") * 2,
        slot("") * 2,
        slot("1 a").replace(b"1 a", b"2 a") * 2,
        slot("1 a").replace(b" \n", b"\t\n") * 2,
        slot("1 a")[:-1] * 2,
        "¹ a".encode("latin-1").ljust(512),
        b"1 a ".ljust(512, b"0"),
    ],
    ids=str,
)
def test_two_bad_slots_are_damage(mark, path, content):
    path.write_bytes(content)

    with pytest.raises(StateCorrupted, match=f"{path} is damaged") as caught:
        mark.read()
    with pytest.raises(StateCorrupted):
        mark.write(("x",))

    assert caught.value.path == str(path)
    assert path.read_bytes() == content


def test_a_file_that_was_cut_is_made_whole_by_the_next_write(mark, path):
    for name in ("a", "b", "c"):
        mark.write((name,))
    os.truncate(path, SLOT)

    assert mark.read() == ("c",)
    mark.write(("d",))
    assert path.read_bytes() == slot("3 c") + slot("4 d")


def test_a_reader_that_writers_overtook_looks_again(mark, monkeypatch):
    mark.write(("a",))
    torn, pread = [b"torn" * 128, b"torn" * 128], os.pread
    monkeypatch.setattr(os, "pread", lambda *where: torn.pop() if torn else pread(*where))

    assert mark.read() == ("a",)


def test_a_short_write_is_continued(mark, monkeypatch):
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, where: pwrite(fd, data[:7], where))

    mark.write(("a",))

    assert mark.read() == ("a",)


def test_a_failed_write_leaves_the_record_before_it(mark, monkeypatch):
    mark.write(("a",))
    pwrite = os.pwrite

    def fail_half_way(fd, data, where):
        if len(data) < SLOT:
            raise OSError(errno.EIO, "Input/output error")
        return pwrite(fd, data[:10], where)

    with monkeypatch.context() as faulty:
        faulty.setattr(os, "pwrite", fail_half_way)
        with pytest.raises(OSError, match="Input/output"):
            mark.write(("b",))

    assert mark.read() == ("a",)


def test_the_format_stays(mark, path):
    mark.write(("0123456789abcdef0123456789abcdef", "12", "7"))

    expected = b"1 0123456789abcdef0123456789abcdef 12 7 03fa601ca88883b795af3b7955885834"
    assert path.read_bytes()[:256] == expected.ljust(255) + b"\n"
