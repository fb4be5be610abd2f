"""What is sealed opens again, and nothing else does: not one bit more or less, not under another name."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import pickle
import random
from dataclasses import astuple, replace

import pytest
from cryptography.exceptions import InvalidTag
from hypothesis import given
from hypothesis import strategies as st

from sage_sandbox.errors import SageError, StateCorrupted, StateTooNew, WrongKey
from sage_sandbox.store.envelope import Header, Opened, Subject, open_sealed, peek, seal
from sage_sandbox.store.keys import Keys

KEY = bytes(range(32))
ENCRYPTED = Keys([KEY])
READABLE = Keys([KEY], encrypt=False)
BOTH = pytest.mark.parametrize("keys", [ENCRYPTED, READABLE], ids=["aes", "hmac"])

SUBJECT = Subject("00112233445566778899aabbccddeeff", "payment", "ab" * 16, "checkpoint", "research", 2)
MAIN = replace(SUBJECT, kind="state", name="", number=0)
PAYLOAD = json.dumps({"version": "1.0", "operations": ["x" * 40] * 12}).encode()

hex_32 = st.text("0123456789abcdef", min_size=32, max_size=32)
words = st.text("abcxyz0189_-", max_size=64)
numbers = st.integers(1, 10**15 - 1)
kinds_and_names = st.one_of(
    st.just(("state", "", 0)),
    st.tuples(st.just("definition"), st.just(""), numbers),
    st.tuples(st.just("checkpoint"), words.filter(bool), numbers),
    st.tuples(st.just("cache"), words, st.integers(0, 10**15 - 1)),
)
subjects = st.builds(
    lambda project, feature, run, rest: Subject(project, feature, run, *rest), hex_32, words, hex_32, kinds_and_names
)


def open_here(data, keys, expected=SUBJECT):
    return open_sealed(data, expected, keys, path="the file")


def with_checksum(data, keys):
    """The same with a checksum that fits, as somebody would make it who edits a file with care."""
    head, _, rest = data.partition(b'"payload":\n')
    end = len(rest) - (120 if keys.encrypt else 152)
    digest = hashlib.sha256(rest[: max(end, 0)]).hexdigest().encode()
    return b"".join((head, b'"payload":\n', rest[: end + 12], digest, rest[end + 76 :])) if end >= 0 else data


# -- what opens ----------------------------------------------------------------------------------------------------


@given(st.binary(max_size=300), subjects, numbers, st.booleans(), st.binary(min_size=32, max_size=32))
def test_what_is_sealed_opens_again(payload, subject, generation, encrypt, key):
    keys = Keys([key], encrypt=encrypt)
    generation = subject.number if subject.kind == "definition" else generation

    data = seal(payload, subject, generation, keys)

    assert Opened(subject, generation, payload, keys.id) == open_here(data, keys, subject)
    assert Opened(subject, generation, payload, keys.id) == open_here(data, keys, None)


@given(subjects, numbers, st.booleans())
def test_first_line_is_what_json_writes(subject, generation, encrypt):
    keys = Keys([KEY], encrypt=encrypt)
    generation = subject.number if subject.kind == "definition" else generation
    fields = {
        "sage": "state",
        "version": 1,
        "algorithm": "AES-256-GCM" if encrypt else "HMAC-SHA256",
        "key": keys.id,
        "salt": "",
        **dict(zip(("project", "feature", "run", "kind", "name", "number"), astuple(subject), strict=True)),
        "generation": generation,
        "nonce": "07" * 12 if encrypt else "",
        "payload": {},
    }

    data = seal(b"{}", subject, generation, keys, nonce=lambda size: b"\x07" * size)
    line = data.partition(b"\n")[0].decode()

    assert json.dumps(fields, separators=(",", ":")).removesuffix("{}}") == line


@BOTH
def test_sealed_file_is_one_json_document_in_three_parts(keys):
    data = seal(PAYLOAD, SUBJECT, 7, keys)
    document = json.loads(data)
    lines = data.split(b"\n")

    assert 4 == len(lines)
    assert b"" == lines[3]
    assert hashlib.sha256(lines[1]).hexdigest() == document["sha256"]
    assert list(document)[-3:] == ["payload", "sha256", "tag"]
    if keys.encrypt:
        assert len(PAYLOAD) == len(base64.b64decode(document["payload"], validate=True))
    else:
        assert PAYLOAD == lines[1]


def test_two_seals_of_the_same_differ_in_nonce_and_ciphertext():
    one, other = (json.loads(seal(PAYLOAD, SUBJECT, 7, ENCRYPTED)) for _ in range(2))

    assert {"nonce", "payload", "sha256", "tag"} == {name for name in one if one[name] != other[name]}


def test_two_readable_seals_of_the_same_are_the_same():
    assert seal(PAYLOAD, SUBJECT, 7, READABLE) == seal(PAYLOAD, SUBJECT, 7, READABLE)


def test_ciphertext_shows_nothing_of_the_payload():
    assert b"operations" not in seal(PAYLOAD, SUBJECT, 7, ENCRYPTED)


def test_large_payload_opens_again():
    payload = os.urandom(1 << 20) * 3

    assert payload == open_here(seal(payload, SUBJECT, 7, ENCRYPTED), ENCRYPTED).payload


@pytest.mark.parametrize(
    "change",
    [
        {"project": ""},
        {"project": "AB" * 16},
        {"run": ""},
        {"feature": "Payment"},
        {"feature": 'x","run":"'},
        {"feature": "f" * 65},
        {"feature": "é"},
        {"kind": "policy"},
        {"kind": "state"},
        {"kind": "definition", "name": ""},
        {"name": ""},
        {"name": "a b"},
        {"number": 0},
        {"number": -1},
        {"number": 10**15},
    ],
)
def test_what_could_not_be_read_again_is_not_sealed(change):
    with pytest.raises(ValueError, match=r"no state file can be of|codec can't encode"):
        seal(PAYLOAD, replace(SUBJECT, **change), 7, ENCRYPTED)


def test_generation_of_a_definition_is_its_number():
    with pytest.raises(ValueError, match="generation 7"):
        seal(PAYLOAD, replace(SUBJECT, kind="definition", name=""), 7, ENCRYPTED)


# -- looking without a key -----------------------------------------------------------------------------------------


def test_header_is_seen_without_a_key():
    data = seal(PAYLOAD, SUBJECT, 7, ENCRYPTED, nonce=bytes)
    size = data.index(b"\n") + 1

    assert Header("AES-256-GCM", ENCRYPTED.id, b"", SUBJECT, 7, bytes(12), size) == peek(data)
    assert peek(data).encrypted


def test_header_of_a_readable_file_says_so():
    header = peek(seal(PAYLOAD, SUBJECT, 7, READABLE))

    assert not header.encrypted
    assert b"" == header.nonce


def test_header_needs_no_end():
    data = seal(PAYLOAD, SUBJECT, 7, ENCRYPTED)

    assert peek(data) == peek(data[: data.index(b"\n") + 1])


def test_salt_is_in_the_header_of_what_a_passphrase_sealed():
    keys = Keys(passphrases=[b"correct horse"], salt=bytes(range(16)))

    data = seal(PAYLOAD, SUBJECT, 7, keys)

    assert bytes(range(16)) == peek(data).salt
    assert PAYLOAD == open_here(data, Keys(passphrases=[b"correct horse"], salt=bytes(16))).payload


# -- what does not open --------------------------------------------------------------------------------------------


@BOTH
def test_every_single_bit_counts(keys):
    data = seal(PAYLOAD, SUBJECT, 7, keys)
    accepted = []
    for bit in range(8 * len(data)):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        for attempt in (bytes(changed), with_checksum(bytes(changed), keys)):
            if attempt != data:
                try:
                    open_here(attempt, keys, None)
                except (StateCorrupted, StateTooNew, WrongKey):
                    continue
                accepted.append(bit)

    assert len(data) > 900
    assert [] == accepted


class Fuzzer:
    """Spoils sealed files, the same way each time."""

    def __init__(self, keys):
        self.random = random.Random(20260131)
        self.keys = keys
        self.files = [
            seal(payload, subject, 7, keys, nonce=self.random.randbytes)
            for subject in (SUBJECT, MAIN, replace(SUBJECT, name="planning"))
            for payload in (PAYLOAD, b"", b"x", b"xy")
        ]

    def spoiled(self):
        how = self.random.choice(
            [self.cut, self.insert, self.delete, self.overwrite, self.splice, self.edit, self.reword, self.noise]
        )
        data = self.random.choice(self.files)
        for _ in range(self.random.choice([1, 1, 1, 2, 3])):
            data = how(data)
        data = with_checksum(data, self.keys) if self.random.random() < 0.5 else data
        return self.spoiled() if data in self.files else data

    def place(self, data):
        return self.random.randrange(len(data) + 1)

    def cut(self, data):
        at = self.place(data)
        return self.random.choice([data[:at], data[at:]])

    def insert(self, data):
        at = self.place(data)
        more = self.random.choice([b"\n", b" ", b'"', b"=", b"\x00", b"0", b"\xff", self.random.randbytes(9)])
        return data[:at] + more + data[at:]

    def delete(self, data):
        at = self.place(data)
        return data[:at] + data[at + self.random.choice([1, 1, 2, 4, 100]) :]

    def overwrite(self, data):
        at = self.place(data)
        size = self.random.choice([1, 1, 2, 16])
        return data[:at] + self.random.randbytes(size) + data[at + size :]

    def splice(self, data):
        other = self.random.choice(self.files)
        if self.random.random() < 0.5:  # whole parts: the header of one, the payload or the end of another
            one, two = data.split(b"\n"), other.split(b"\n")
            return b"\n".join(self.random.choice(pair) for pair in zip(one, two, strict=False))
        return data[: self.place(data)] + other[self.place(other) :]

    def edit(self, data):
        """Another value in the header, as the format has it."""
        head, feed, rest = data.partition(b"\n")
        fields = head.split(b",")
        at = self.random.randrange(len(fields))
        name, _, value = fields[at].partition(b":")
        values = [b'""', b"0", b"1", b"3", b"-1", b"1e0", b"null", b'"%b"' % self.random.randbytes(8).hex().encode()]
        values += [b'"%b"' % self.random.randbytes(16).hex().encode(), value.upper(), b" " + value, b"[" + value + b"]"]
        fields[at] = name + b":" + self.random.choice(values)
        return b",".join(fields) + feed + rest

    def reword(self, data):
        """The same meaning, written in another way."""
        ways = [(b'"="', b'"'), (b'="', b'"'), (b'"\n,', b'="\n,'), (b'"\n,', b'\n"\n,'), (b"+", b"-"), (b"/", b"_")]
        ways += [(b"a", b"\\u0061"), (b":", b": "), (b"\n", b"\r\n"), (b"/", b"\\/"), (b"A", b"B"), (b"\n", b"")]
        old, new = self.random.choice(ways)
        return data.replace(old, new, self.random.choice([1, 1, -1]))

    def noise(self, data):
        return data[: self.random.choice([0, 0, 27, 300])] + self.random.randbytes(self.random.randrange(600))


@BOTH
def test_ten_thousand_spoiled_files_are_all_refused_by_name(keys):
    fuzzer = Fuzzer(keys)
    accepted, errors = [], set()
    for _ in range(10_000):
        data = fuzzer.spoiled()
        try:
            accepted.append(open_here(data, keys, None))
        except SageError as error:
            errors.add((type(error), error.message.partition(":")[0].rstrip("0123456789abcdef, ()")))

    assert [] == accepted
    assert {StateCorrupted, StateTooNew, WrongKey} == {kind for kind, _ in errors}
    assert len(errors) >= 5


@given(st.binary(max_size=2000))
def test_noise_is_no_state_file(data):
    with pytest.raises(StateCorrupted, match="is not a state file"):
        open_here(data, ENCRYPTED)


@BOTH
def test_error_carries_the_path_and_survives_pickling(keys):
    data = seal(PAYLOAD, SUBJECT, 7, keys)

    with pytest.raises(StateCorrupted) as refused:
        open_here(data[:-1], keys)
    copy = pickle.loads(pickle.dumps(refused.value))

    assert ("the file", "the file is damaged: its end is missing") == (copy.path, copy.message)


def test_later_version_is_refused_before_anything_else_is_looked_at():
    with pytest.raises(StateTooNew) as refused:
        open_here(b'{"sage":"state","version":12,\xff\x00', ENCRYPTED)

    assert "the file was written by a later version (format 12)" == refused.value.message
    assert "update sage-sandbox" == refused.value.hint


def test_wrong_key_says_which_is_needed_and_where_to_put_it():
    data = seal(PAYLOAD, SUBJECT, 7, ENCRYPTED)

    with pytest.raises(WrongKey) as refused:
        open_here(data, Keys([bytes(32)]))

    assert f"the file was sealed with key {ENCRYPTED.id}, which is not here" == refused.value.message
    assert "set SAGE_STATE_KEY or SAGE_STATE_KEY_FILE to the key that sealed it" == refused.value.hint


def test_missing_passphrase_is_asked_for_as_one():
    data = seal(PAYLOAD, SUBJECT, 7, Keys(passphrases=[b"correct horse"], salt=bytes(16)))

    with pytest.raises(WrongKey) as refused:
        open_here(data, ENCRYPTED)

    assert "set SAGE_STATE_PASSPHRASE to the passphrase that sealed it" == refused.value.hint


@pytest.mark.parametrize(
    ("sealed_with", "read_with", "message"),
    [
        (ENCRYPTED, READABLE, "the file is encrypted, and SAGE_STATE_ENCRYPTION is off"),
        (READABLE, ENCRYPTED, "the file is not encrypted, and SAGE_STATE_ENCRYPTION is on"),
    ],
)
def test_other_algorithm_than_the_users_is_never_taken_silently(sealed_with, read_with, message):
    data = seal(PAYLOAD, SUBJECT, 7, sealed_with)

    with pytest.raises(StateCorrupted) as refused:
        open_here(data, read_with)

    assert message == refused.value.message
    assert "sage-sandbox state rekey" == refused.value.hint
    assert PAYLOAD == open_here(data, read_with.encrypting(sealed_with.encrypt)).payload


@BOTH
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"project": "ff" * 16}, "the file belongs to another project"),
        ({"feature": "invoice"}, "the file belongs to another feature, payment"),
        ({"run": "ff" * 16}, "the file belongs to another run"),
        ({"kind": "state", "name": "", "number": 0}, "the file is a checkpoint, where a state belongs"),
        ({"name": "planning"}, "the file is the checkpoint of another phase, research"),
        ({"number": 3}, "the file is checkpoint number 2, where 3 belongs"),
        ({"project": "ff" * 16, "number": 3}, "the file belongs to another project"),
    ],
)
def test_file_in_anothers_place_is_refused_by_what_it_is(keys, change, message):
    data = seal(PAYLOAD, SUBJECT, 7, keys)

    with pytest.raises(StateCorrupted) as refused:
        open_here(data, keys, replace(SUBJECT, **change))

    assert message == refused.value.message


def test_project_that_was_moved_has_a_way_on():
    data = seal(PAYLOAD, SUBJECT, 7, ENCRYPTED)

    with pytest.raises(StateCorrupted) as refused:
        open_here(data, ENCRYPTED, replace(SUBJECT, project="ff" * 16))

    assert "if the project was moved: sage-sandbox state rekey" == refused.value.hint


@pytest.mark.parametrize("field", ["project", "feature", "run", "kind", "name", "number"])
def test_empty_expectation_is_any(field):
    expected = replace(SUBJECT, **{field: -1 if field == "number" else ""})  # type: ignore[arg-type]

    assert PAYLOAD == open_here(seal(PAYLOAD, SUBJECT, 7, ENCRYPTED), ENCRYPTED, expected).payload


def test_nothing_is_said_of_a_forged_files_subject_but_that_it_is_forged():
    data = seal(PAYLOAD, SUBJECT, 7, ENCRYPTED).replace(b'"research"', b'"planning"')

    with pytest.raises(StateCorrupted, match="its tag is not true"):
        open_here(data, ENCRYPTED)


# -- the algorithm itself ------------------------------------------------------------------------------------------

# McGrew and Viega, "The Galois/Counter Mode of Operation (GCM)", submission to NIST, appendix B: the test cases with a
# key of 256 bits and a nonce of 96. Key, nonce, plaintext, associated data, ciphertext, tag.
LONG_KEY = "feffe9928665731c6d6a8f9467308308" * 2
PLAIN = (
    "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a72"
    "1c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b391aafd255"
)
CIPHER = (
    "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa"
    "8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f662898015ad"
)
PUBLISHED = {
    13: ("00" * 32, "00" * 12, "", "", "", "530f8afbc74536b9a963b4f1c4cb738b"),
    14: ("00" * 32, "00" * 12, "00" * 16, "", "cea7403d4d606b6e074ec5d3baf39d18", "d0d1c8a799996bf0265b98b5d48ab919"),
    15: (LONG_KEY, "cafebabefacedbaddecaf888", PLAIN, "", CIPHER, "b094dac5d93471bdec1a502270e3cc6c"),
    16: (
        LONG_KEY,
        "cafebabefacedbaddecaf888",
        PLAIN[:120],
        "feedfacedeadbeeffeedfacedeadbeefabaddad2",
        CIPHER[:120],
        "76fc6ece0f4e1768cddf8853bb2d551b",
    ),
}


class WithoutDerivation(Keys):
    """Published cases give the working key itself."""

    def subkey(self, purpose, project, key_id=None):
        return self._keys[0]


@pytest.fixture(params=PUBLISHED.values(), ids=PUBLISHED)  # type: ignore[call-overload]
def case(request):
    key, nonce, plain, aad, sealed, tag = map(bytes.fromhex, request.param)
    return WithoutDerivation([key]).cipher("", ""), nonce, plain, aad, sealed, tag


def test_cipher_seals_as_published(case):
    cipher, nonce, plain, aad, sealed, tag = case

    assert sealed + tag == cipher.encrypt(nonce, plain, aad)


def test_cipher_opens_as_published(case):
    cipher, nonce, plain, aad, sealed, tag = case

    assert plain == cipher.decrypt(nonce, sealed + tag, aad)


# After the kinds of Google's Project Wycheproof for AES-GCM: every way to spoil one of the published cases.
SPOILED = {
    "tag: first bit": lambda n, s, a, t: (n, s + bytes([t[0] ^ 1]) + t[1:], a),
    "tag: last bit": lambda n, s, a, t: (n, s + t[:-1] + bytes([t[-1] ^ 0x80]), a),
    "tag: bit 64": lambda n, s, a, t: (n, s + t[:8] + bytes([t[8] ^ 1]) + t[9:], a),
    "tag: all bits": lambda n, s, a, t: (n, s + bytes(byte ^ 0xFF for byte in t), a),
    "tag: zeros": lambda n, s, a, t: (n, s + bytes(16), a),
    "tag: ones": lambda n, s, a, t: (n, s + b"\xff" * 16, a),
    "tag: rotated": lambda n, s, a, t: (n, s + t[1:] + t[:1], a),
    "tag: cut to 15 bytes": lambda n, s, a, t: (n, s + t[:15], a),
    "tag: cut to 12 bytes": lambda n, s, a, t: (n, s + t[:12], a),
    "tag: gone": lambda n, s, a, t: (n, s, a),
    "tag: a byte more": lambda n, s, a, t: (n, s + t + b"\x00", a),
    "tag: before the ciphertext": lambda n, s, a, t: (n, t + s + b"\x00", a),
    "data: a byte more": lambda n, s, a, t: (n, s + t, a + b"\x00"),
    "data: other": lambda n, s, a, t: (n, s + t, b"\x01" + a[1:]),
    "data: in the ciphertext": lambda n, s, a, t: (n, a + b"\x00" + s + t, b""),
    "nonce: other": lambda n, s, a, t: (bytes([n[0] ^ 1]) + n[1:], s + t, a),
    "nonce: a byte more": lambda n, s, a, t: (n + b"\x00", s + t, a),
    "ciphertext: other": lambda n, s, a, t: (n, b"\x01" + s[1:] + b"\x00" + t, a),
}


@pytest.mark.parametrize("spoil", SPOILED.values(), ids=SPOILED)
def test_cipher_refuses_what_was_spoiled(case, spoil):
    cipher, nonce, _, aad, sealed, tag = case

    with pytest.raises(InvalidTag):
        cipher.decrypt(*spoil(nonce, sealed, aad, tag))
