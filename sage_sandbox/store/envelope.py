"""Sealed files: bytes to bytes, and nothing is believed before its tag is true.

The format is in docs/design.md, "The envelope". For one content there is one file: whatever could be written in more
than one way (JSON, hex, base64) is accepted in one way only, so no bit of a file can change unnoticed.
"""

from __future__ import annotations

import binascii
import hashlib
import hmac
import os
import re
from collections.abc import Callable
from typing import Final

from cryptography.exceptions import InvalidTag

from sage_sandbox.errors import StateCorrupted, StateTooNew, WrongKey
from sage_sandbox.frozen import frozen
from sage_sandbox.store.keys import Keys

AES: Final = "AES-256-GCM"
HMAC: Final = "HMAC-SHA256"
REKEY_HINT: Final = "sage-sandbox state rekey"

_VERSION: Final = 1
_HEADER_MAX: Final = 4096
_NONCE_BYTES: Final = 12
_TAG_BYTES: Final = {AES: 16, HMAC: 32}

_BEGINNING: Final = re.compile(rb'\{"sage":"state","version":([1-9][0-9]{0,8}),')
# The strings of a header need no escapes, so one expression both reads the line and proves that it is the one that
# json.dumps would have written. A kind fixes which of its fields are empty, as an empty expectation means "any".
_HEADER: Final = re.compile(
    rb'\{"sage":"state","version":1,'
    rb'"algorithm":"(?:(?P<aes>AES-256-GCM)|HMAC-SHA256)",'
    rb'"key":"(?P<key>[0-9a-f]{16})",'
    rb'"salt":"(?P<salt>(?:[0-9a-f]{32})?)",'
    rb'"project":"(?P<project>[0-9a-f]{32})",'
    rb'"feature":"(?P<feature>[a-z0-9_-]{0,64})",'
    rb'"run":"(?P<run>[0-9a-f]{32})",'
    rb'"kind":"'
    rb'(?=state","name":"","number":0,"generation":[1-9]'
    rb'|definition","name":"","number":(?P<same>[1-9][0-9]*),"generation":(?P=same),'
    rb'|checkpoint","name":"[^"]+","number":[1-9][0-9]*,"generation":[1-9]'
    rb'|cache")'
    rb'(?P<kind>[a-z]+)",'
    rb'"name":"(?P<name>[a-z0-9_-]{0,64})",'
    rb'"number":(?P<number>0|[1-9][0-9]{0,14}),'
    rb'"generation":(?P<generation>0|[1-9][0-9]{0,14}),'
    rb'"nonce":"(?P<nonce>(?(aes)[0-9a-f]{24}))",'
    rb'"payload":\n'
)
_FIELDS: Final = (
    "aes", "key", "salt", "project", "feature", "run", "kind", "name", "number", "generation", "nonce",
)  # fmt: skip
_TRAILER: Final = {
    algorithm: re.compile(rb'\n,"sha256":"([0-9a-f]{64})","tag":"([0-9a-f]{%d})"\}\n' % (2 * size))
    for algorithm, size in _TAG_BYTES.items()
}
_TRAILER_BYTES: Final = {algorithm: 88 + 2 * size for algorithm, size in _TAG_BYTES.items()}


@frozen
class Subject:
    """What a sealed file is of. In an expectation, "" and -1 stand for any."""

    project: str
    feature: str
    run: str
    kind: str
    name: str
    number: int


@frozen
class Header:
    """What a file says of itself; worth nothing but a message until its tag was found true."""

    algorithm: str
    key_id: str
    salt: bytes
    subject: Subject
    generation: int
    nonce: bytes
    size: int
    """How long the first line is, in bytes, with its line feed."""

    @property
    def encrypted(self) -> bool:
        """Whether the payload is hidden, or only authenticated."""
        return self.algorithm == AES


@frozen
class Opened:
    """A sealed file whose tag was true."""

    subject: Subject
    generation: int
    payload: bytes
    key_id: str


def seal(
    payload: bytes, subject: Subject, generation: int, keys: Keys, *, nonce: Callable[[int], bytes] = os.urandom
) -> bytes:
    """The file that holds ``payload`` as ``subject``, sealed with the current key. ValueError if no file can say it."""
    algorithm = AES if keys.encrypt else HMAC
    fresh = nonce(_NONCE_BYTES) if keys.encrypt else b""
    header = _header(algorithm, subject, generation, keys, fresh)
    if keys.encrypt:
        sealed = keys.cipher(subject.project, keys.id).encrypt(fresh, payload, header)
        body, tag = b'"%b"' % _to_base64(memoryview(sealed)[: -_TAG_BYTES[AES]]), sealed[-_TAG_BYTES[AES] :]
    else:
        body, tag = payload, _mac(header + payload, keys, subject.project, keys.id)
    digest = hashlib.sha256(body).hexdigest()
    return b"".join((header, body, f'\n,"sha256":"{digest}","tag":"{tag.hex()}"}}\n'.encode("ascii")))


def open_sealed(data: bytes, expected: Subject | None, keys: Keys, *, path: str) -> Opened:
    """What is in a sealed file, if it is whole, true and what is ``expected`` there (None: whatever it is).

    StateTooNew, StateCorrupted or WrongKey, in the order that tells most: what kind of file it is, rot, the user's
    settings, and only then tampering and mixing up. ``path`` is for the messages.
    """
    header = peek(data, path=path)
    body, tag = _body(data, header, path)
    _check_settings(header, keys, path)
    payload = (_decrypted if header.encrypted else _authenticated)(data, header, body, tag, keys, path)
    if expected is not None and header.subject != expected:
        _check_subject(header.subject, expected, path)
    return Opened(header.subject, header.generation, payload, header.key_id)


def peek(data: bytes, *, path: str = "this file") -> Header:
    """What the file says of itself, unproved: for a message, or to find its key. StateTooNew, StateCorrupted."""
    beginning = _BEGINNING.match(data)
    if beginning is None:
        raise _corrupted(path, "is not a state file")
    if int(beginning[1]) > _VERSION:
        raise StateTooNew(f"{path} was written by a later version (format {int(beginning[1])})", "update sage-sandbox")
    match = _HEADER.match(data, 0, _HEADER_MAX)
    if match is None:
        raise _corrupted(path, "is damaged: its first line is not one that this program writes")
    aes, key, salt, project, feature, run, kind, name, number, generation, nonce = match.group(*_FIELDS)
    subject = Subject(project.decode(), feature.decode(), run.decode(), kind.decode(), name.decode(), int(number))
    return Header(
        AES if aes else HMAC,
        key.decode(),
        binascii.unhexlify(salt),
        subject,
        int(generation),
        binascii.unhexlify(nonce),
        match.end(),
    )


# -- writing -------------------------------------------------------------------------------------------------------


def _header(algorithm: str, subject: Subject, generation: int, keys: Keys, nonce: bytes) -> bytes:
    line = (
        f'{{"sage":"state","version":{_VERSION},"algorithm":"{algorithm}","key":"{keys.id}","salt":"{keys.salt.hex()}",'
        f'"project":"{subject.project}","feature":"{subject.feature}","run":"{subject.run}","kind":"{subject.kind}",'
        f'"name":"{subject.name}","number":{subject.number},"generation":{generation},"nonce":"{nonce.hex()}",'
        '"payload":\n'
    ).encode("ascii")
    if not _HEADER.fullmatch(line):  # Written it would never be read again.
        raise ValueError(f"no state file can be of {subject}, generation {generation}")
    return line


def _to_base64(data: bytes | memoryview) -> bytes:
    return binascii.b2a_base64(data, newline=False)


# -- reading -------------------------------------------------------------------------------------------------------


def _body(data: bytes, header: Header, path: str) -> tuple[memoryview, bytes]:
    """PAYLOAD as it stands, its checksum compared, and the tag."""
    end = len(data) - _TRAILER_BYTES[header.algorithm]
    trailer = _TRAILER[header.algorithm].fullmatch(data, end) if end >= header.size else None
    if trailer is None:
        raise _corrupted(path, "is damaged: its end is missing")
    body = memoryview(data)[header.size : end]
    if hashlib.sha256(body).hexdigest().encode("ascii") != trailer[1]:
        raise _corrupted(path, "is damaged: its checksum does not fit")
    return body, binascii.unhexlify(trailer[2])


def _check_settings(header: Header, keys: Keys, path: str) -> None:
    if header.encrypted != keys.encrypt:
        found, setting = ("encrypted", "off") if header.encrypted else ("not encrypted", "on")
        raise _corrupted(path, f"is {found}, and SAGE_STATE_ENCRYPTION is {setting}", REKEY_HINT)
    if not keys.knows(header.key_id, header.salt):
        sources = "SAGE_STATE_PASSPHRASE" if header.salt else "SAGE_STATE_KEY or SAGE_STATE_KEY_FILE"
        hint = f"set {sources} to the {'passphrase' if header.salt else 'key'} that sealed it"
        raise WrongKey(f"{path} was sealed with key {header.key_id}, which is not here", hint)


def _decrypted(data: bytes, header: Header, body: memoryview, tag: bytes, keys: Keys, path: str) -> bytes:
    sealed = _from_base64(body, path) + tag
    try:
        return keys.cipher(header.subject.project, header.key_id).decrypt(header.nonce, sealed, data[: header.size])
    except InvalidTag:
        raise _forged(path) from None


def _authenticated(data: bytes, header: Header, body: memoryview, tag: bytes, keys: Keys, path: str) -> bytes:
    said = memoryview(data)[: header.size + len(body)]
    if not hmac.compare_digest(_mac(said, keys, header.subject.project, header.key_id), tag):
        raise _forged(path)
    return bytes(body)


def _mac(data: bytes | memoryview, keys: Keys, project: str, key_id: str) -> bytes:
    return hmac.digest(keys.subkey("authenticate", project, key_id), data, "sha256")


def _from_base64(body: memoryview, path: str) -> bytes:
    """The bytes in quotation marks, if that is the one way to write them."""
    try:
        data = binascii.a2b_base64(body[1:-1], strict_mode=True)
    except ValueError:
        raise _not_canonical(path) from None
    # Where no character is more than it takes, only the bits that the last group leaves unused could be anything.
    last = _to_base64(data[(len(data) - 1) // 3 * 3 :])
    if len(body) != 2 + (len(data) + 2) // 3 * 4 or bytes((body[0], *body[-1 - len(last) :])) != b'"%b"' % last:
        raise _not_canonical(path)
    return data


def _check_subject(found: Subject, expected: Subject, path: str) -> None:
    """StateCorrupted naming the first thing that is another's: the tag was true, so the file was moved or copied."""
    if expected.project not in {"", found.project}:
        raise _corrupted(path, "belongs to another project", f"if the project was moved: {REKEY_HINT}")
    whose = "phase" if found.kind == "checkpoint" else "name"
    others = (
        (found.feature, expected.feature, f"belongs to another feature, {found.feature}"),
        (found.run, expected.run, "belongs to another run"),
        (found.kind, expected.kind, f"is a {found.kind}, where a {expected.kind} belongs"),
        (found.name, expected.name, f"is the {found.kind} of another {whose}, {found.name}"),
        (found.number, expected.number, f"is {found.kind} number {found.number}, where {expected.number} belongs"),
    )
    for is_, should_be, message in others:
        if should_be not in {"", -1, is_}:
            raise _corrupted(path, message)


def _corrupted(path: str, message: str, hint: str = "") -> StateCorrupted:
    return StateCorrupted(f"{path} {message}", hint, path)


def _not_canonical(path: str) -> StateCorrupted:
    return _corrupted(path, "is damaged: its payload is not canonical base64")


def _forged(path: str) -> StateCorrupted:
    return _corrupted(path, "is not what was sealed: its tag is not true")
