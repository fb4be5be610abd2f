"""The user's keys: where they come from, which of them is used, what is made of them.

Sources, formats and derivations are in docs/design.md, "Keys" and "The envelope". Nothing here lies inside a project.
"""

from __future__ import annotations

import base64
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Final, Literal, NoReturn

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from sage_sandbox.disk.files import Folder
from sage_sandbox.disk.locking import Lock, acquire
from sage_sandbox.errors import SageError, StateUnwritable, UsageError, WrongKey

FILE_NAME: Final = "state.key"
LOCK_NAME: Final = "state.key.lock"
LOCK_WAIT_S: Final = 10.0
KEY_BYTES: Final = 32
SALT_BYTES: Final = 16
FILE_MAX: Final = 64 << 10
TRIES_MAX: Final = 16
"""How many keys are made of passphrases for files that were found: each takes 64 MiB and a tenth of a second, and a
stranger's files may name any number of salts."""

Purpose = Literal["seal", "authenticate", "audit", "cache", "answers"]
AskPassphrase = Callable[[], str | None]

_HEX: Final = re.compile(r"[0-9A-Fa-f]{64}")
_FORMS: Final = "a key is 64 hex digits, or base64 of 32 bytes"
_OTHER_SOURCES: Final = "set SAGE_STATE_KEY, SAGE_STATE_KEY_FILE or SAGE_STATE_PASSPHRASE"


class Keys:
    """The key that new files are sealed with, and those that still open what they sealed. Never leaves the process.

    ``encrypt`` is the user's SAGE_STATE_ENCRYPTION. A passphrase becomes a key when one is needed: with ``salt`` for
    what is written, with a file's own salt for what is read.
    """

    def __init__(
        self, keys: Iterable[bytes] = (), *, passphrases: Iterable[bytes] = (), salt: bytes = b"", encrypt: bool = True
    ) -> None:
        """The first of ``keys`` is current; where there is a ``salt``, the first of ``passphrases`` is."""
        self.encrypt = encrypt
        self.salt = salt
        self._keys = tuple(keys)
        self._passphrases = tuple(passphrases)
        self._by_id = {key_id(key): key for key in self._keys}
        self._made: dict[tuple[bytes, bytes], str] = {}
        # Files name keys and projects, and a stranger may leave many files: what is kept for them is bounded.
        self._subkeys = lru_cache(maxsize=64)(self._make_subkey)
        self._ciphers = lru_cache(maxsize=64)(self._make_cipher)

    @cached_property
    def id(self) -> str:
        """The current key's id."""
        return self._make(self._passphrases[0], self.salt) if self.salt else key_id(self._keys[0])

    def knows(self, key_id: str, salt: bytes = b"") -> bool:
        """Whether the key of that id is here, or one of the passphrases becomes it with that salt."""
        if key_id not in self._by_id and salt and (salt == self.salt or len(self._made) < TRIES_MAX):
            for passphrase in self._passphrases:
                self._make(passphrase, salt)
        return key_id in self._by_id

    def subkey(self, purpose: Purpose, project: str, key_id: str | None = None) -> bytes:
        """The working key of a project for one purpose: of the current key, or of the one with that id. WrongKey."""
        return self._subkeys(purpose, project, key_id or self.id)

    def cipher(self, project: str, key_id: str) -> AESGCM:
        """The cipher that seals and opens a project's files. WrongKey."""
        return self._ciphers(project, key_id)

    def audit_key(self, project: str) -> bytes:
        """What the audit log of a project is authenticated with."""
        return self.subkey("audit", project)

    def cache_key(self, project: str) -> bytes:
        """What the names of a project's cached outcomes are made with: they tell nothing of what they stand for."""
        return self.subkey("cache", project)

    def answers_key(self, project: str) -> bytes:
        """What the broker seals answers of a project's tools with, as a key of its own: it opens nothing else."""
        return self.subkey("answers", project)

    def also(self, other: Keys) -> Keys:
        """The same, and what ``other`` opens is opened as well."""
        return Keys(
            (*self._keys, *other._keys),
            passphrases=(*self._passphrases, *other._passphrases),
            salt=self.salt,
            encrypt=self.encrypt,
        )

    def encrypting(self, encrypt: bool) -> Keys:
        """The same under the other setting: to read what was written before the user changed it."""
        keys = Keys.__new__(Keys)
        vars(keys).update(vars(self), encrypt=encrypt)  # what was made of passphrases is shared: it was dear
        return keys

    def __repr__(self) -> str:
        return f"<Keys of a {'passphrase' if self.salt else f'key {self.id}'}, encrypt={self.encrypt}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("keys stay in the process that read them")

    def _make(self, passphrase: bytes, salt: bytes) -> str:
        """The id of the key that a passphrase and a salt make, which is known from now on."""
        if (passphrase, salt) not in self._made:
            key = _stretched(passphrase, salt)
            self._by_id[key_id(key)] = key
            self._made[passphrase, salt] = key_id(key)
        return self._made[passphrase, salt]

    def _make_subkey(self, purpose: Purpose, project: str, key_id: str) -> bytes:
        if not self.knows(key_id):
            raise WrongKey(f"key {key_id} is not here", "set SAGE_STATE_KEY or SAGE_STATE_KEY_FILE to it")
        info = f"sage-sandbox {purpose}".encode("ascii")
        return HKDF(SHA256(), KEY_BYTES, bytes.fromhex(project), info).derive(self._by_id[key_id])

    def _make_cipher(self, project: str, key_id: str) -> AESGCM:
        return AESGCM(self.subkey("seal", project, key_id))


def new_key() -> bytes:
    """A key nobody has had before."""
    return secrets.token_bytes(KEY_BYTES)


def key_id(key: bytes) -> str:
    """What a key is called: it tells keys apart and tells nothing about them."""
    return HKDF(SHA256(), 8, None, b"sage-sandbox key id").derive(key).hex()


def find_keys(
    environ: Mapping[str, str],
    *,
    config: Folder | Path,
    ask_passphrase: AskPassphrase | None = None,
    salt: bytes | None = None,
    make: bool = True,
) -> Keys:
    """The user's keys, from the first source that has one.

    A passphrase is used with ``salt``, the project's, or a fresh one. ``make``: a key is made where there is none. A
    variable that is set and empty is an error: passed over, state would be sealed with another key than was meant.

    UsageError if a source is no good; StateUnwritable if no key can be kept and no passphrase is given; WrongKey if
    there is no key and none is to be made.
    """
    encrypt = _encryption(environ)

    def of_passphrase(passphrase: str) -> Keys:
        # The environment's bytes, as they were before Python made text of them.
        phrase = passphrase.encode("utf-8", "surrogateescape")
        return Keys(passphrases=[phrase], salt=salt or secrets.token_bytes(SALT_BYTES), encrypt=encrypt)

    if (text := environ.get("SAGE_STATE_KEY")) is not None:
        return Keys([_parse(text, "SAGE_STATE_KEY")], encrypt=encrypt)
    if (path := environ.get("SAGE_STATE_KEY_FILE")) is not None:
        return read_key_file(path, encrypt=encrypt)
    if (passphrase := environ.get("SAGE_STATE_PASSPHRASE")) is not None:
        if not passphrase:
            raise UsageError("SAGE_STATE_PASSPHRASE is empty", "unset it, or set it to a passphrase")
        return of_passphrase(passphrase)
    try:
        if keys := _kept_keys(config, make=make):
            return Keys(keys, encrypt=encrypt)
        trouble: SageError = WrongKey(f"there is no key at {_place(config)}", _OTHER_SOURCES)
    except (OSError, StateUnwritable) as error:
        trouble = _not_kept(config, error) if make else _unreadable(_place(config), error)
    if ask_passphrase and (passphrase := ask_passphrase()):
        return of_passphrase(passphrase)
    raise trouble


def read_key_file(path: Path | str, *, encrypt: bool = True) -> Keys:
    """The keys of a file the user names; links are the user's choice. UsageError."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError as error:
        raise _unreadable(path, error) from error
    return Keys(_parse_lines(_read_private(fd, path), path), encrypt=encrypt)


def rotate(config: Folder | Path, *, encrypt: bool = True) -> Keys:
    """Put a new key first in the user's key file; the others stay, to open what they sealed. StateUnwritable."""
    try:
        with _opened(config, make=True) as folder, _locked(folder):
            retired, first = _read_keys(folder), new_key()
            _write(folder, _line(first) + (_read(folder) or b""))
            return Keys((first, *retired), encrypt=encrypt)
    except OSError as error:
        raise _not_kept(config, error) from error


# -- the user's own files ------------------------------------------------------------------------------------------


def _kept_keys(config: Folder | Path, *, make: bool) -> tuple[bytes, ...]:
    """The keys in the user's key file; ``make``: it is made on first use."""
    try:
        with _opened(config, make=make) as folder:
            if make and _read(folder) is None:
                _make_file(folder)
            return _read_keys(folder)
    except FileNotFoundError:
        if make:
            raise
        return ()


def _make_file(folder: Folder) -> None:
    with _locked(folder):
        if FILE_NAME not in folder.names():  # else another process was quicker
            _write(folder, _line(new_key()))


def _write(folder: Folder, data: bytes) -> None:
    if len(data) > FILE_MAX:  # it could not be read again
        raise UsageError(f"{_place(folder)} is full", "remove its last lines: keys that seal nothing any more")
    folder.sweep(f"{FILE_NAME}.")  # what a process left that was killed here: it holds a key
    folder.write_new(FILE_NAME, data)
    folder.sync()


def _locked(folder: Folder) -> Lock:
    return acquire(folder, LOCK_NAME, wait_s=LOCK_WAIT_S, who="making a key")


def _read_keys(folder: Folder) -> tuple[bytes, ...]:
    data = _read(folder)
    return () if data is None else _parse_lines(data, _place(folder))


def _read(folder: Folder) -> bytes | None:
    try:
        fd = folder.open_file(FILE_NAME, os.O_RDONLY)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _unreadable(_place(folder), error) from error
    return _read_private(fd, _place(folder))


@contextmanager
def _opened(config: Folder | Path, *, make: bool) -> Iterator[Folder]:
    if isinstance(config, Folder):
        yield config
    else:
        with Folder.open(config, make=make) as folder:
            yield folder


def _place(config: Folder | Path) -> Path:
    return Path(config.path if isinstance(config, Folder) else config, FILE_NAME)


def _not_kept(config: Folder | Path, error: OSError | StateUnwritable) -> StateUnwritable:
    path = _place(config)
    message = f"state cannot be written: no key can be kept at {path}: {_reason(error)}"
    return StateUnwritable(message, _OTHER_SOURCES, str(path))


# -- what keys are written as --------------------------------------------------------------------------------------


def _read_private(fd: int, path: Path | str) -> bytes:
    """Read and close a key file, unless others may read it, too."""
    data = b""
    try:
        _check_private(os.fstat(fd), path)
        while len(data) <= FILE_MAX and (more := os.read(fd, FILE_MAX + 1 - len(data))):
            data += more
    except OSError as error:
        raise _unreadable(path, error) from error
    finally:
        os.close(fd)
    if len(data) > FILE_MAX:
        raise UsageError(f"{path} is too large for a file of keys", _FORMS)
    return data


def _check_private(found: os.stat_result, path: Path | str) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise UsageError(f"{path} is not a regular file", "a key is read from a file, never from a pipe or device")
    if found.st_mode & 0o077:
        raise UsageError(f"{path}: others may read this key", f"chmod 600 {path}")


def _parse_lines(data: bytes, path: Path | str) -> tuple[bytes, ...]:
    lines = data.decode("ascii", "replace").split("\n")
    keys = tuple(_parse(line, f"{path}, line {number},") for number, line in enumerate(lines, 1) if line.strip())
    if not keys:
        raise UsageError(f"{path} holds no key", f"{_FORMS}; one a line")
    return keys


def _parse(text: str, where: str) -> bytes:
    """The bytes of a key. UsageError, which says where it stands, and nothing of it."""
    text = text.strip()
    if _HEX.fullmatch(text):
        return bytes.fromhex(text)
    with suppress(ValueError):
        key = base64.b64decode(text, validate=True)
        if len(key) == KEY_BYTES and base64.b64encode(key).decode("ascii") == text:
            return key
    raise UsageError(f"{where} is not a key", _FORMS)


def _line(key: bytes) -> bytes:
    return key.hex().encode("ascii") + b"\n"


def _unreadable(path: Path | str, error: OSError | StateUnwritable) -> UsageError:
    return UsageError(f"{path} cannot be read: {_reason(error)}", "it has to be a file of keys that you may read")


def _reason(error: OSError | StateUnwritable) -> str:
    return error.strerror or str(error) if isinstance(error, OSError) else error.message


# -- passphrases and the setting -----------------------------------------------------------------------------------


def _stretched(passphrase: bytes, salt: bytes) -> bytes:
    """Argon2id, the second choice of RFC 9106: 3 passes over 64 MiB in 4 lanes."""
    return Argon2id(salt=salt, length=KEY_BYTES, iterations=3, lanes=4, memory_cost=64 << 10).derive(passphrase)


def _encryption(environ: Mapping[str, str]) -> bool:
    text = environ.get("SAGE_STATE_ENCRYPTION", "true")
    meant = {"true": True, "1": True, "false": False, "0": False}.get(text.strip().lower())
    if meant is None:
        raise UsageError(f"SAGE_STATE_ENCRYPTION is neither true nor false: {text!r}", "false: readable, but signed")
    return meant
