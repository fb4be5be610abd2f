"""Where keys come from, which one is used, and that none of them is ever shown, lost or shared."""

from __future__ import annotations

import base64
import copy
import errno
import hashlib
import hmac
import os
import pickle
import stat
import subprocess
import sys

import pytest

from sage_sandbox.disk.files import Folder, Untrusted
from sage_sandbox.errors import Locked, StateUnwritable, UsageError, WrongKey
from sage_sandbox.store import keys as keys_module
from sage_sandbox.store.keys import TRIES_MAX, Keys, find_keys, key_id, new_key, read_key_file, rotate

KEY, OTHER, THIRD = bytes(range(32)), bytes(range(32, 64)), b"\xff" * 32
PROJECT = "00112233445566778899aabbccddeeff"
SALT = bytes(range(16))


def hkdf(key, salt, info, size):
    """RFC 5869 as it is written, for up to 32 bytes."""
    extracted = hmac.digest(salt or bytes(32), key, "sha256")
    return hmac.digest(extracted, info + b"\x01", "sha256")[:size]


def key_file(path, *lines, mode=0o600):
    path.write_text("".join(f"{line}\n" for line in lines), encoding="ascii")
    path.chmod(mode)
    return path


@pytest.fixture
def config(tmp_path):
    return tmp_path / "config" / "sage-sandbox"


@pytest.fixture
def made(config):
    """A configuration folder that is there, without a key."""
    config.mkdir(parents=True, mode=0o700)
    return config


@pytest.fixture
def nowhere(tmp_path):
    """A configuration folder that nobody can make, root neither."""
    (tmp_path / "file").write_text("")
    return tmp_path / "file" / "sage-sandbox"


@pytest.fixture
def cheap(monkeypatch):
    """Passphrases cost nothing; what they were used with."""
    calls = []

    def stretched(passphrase, salt):
        calls.append((passphrase, salt))
        return hashlib.sha256(passphrase + salt).digest()

    monkeypatch.setattr(keys_module, "_stretched", stretched)
    return calls


class Refusing(Folder):
    """A folder of a disk that refuses one kind of act."""

    act = ""
    number = errno.ENOSPC

    def _refuse(self, act):
        if act == self.act:
            raise OSError(self.number, os.strerror(self.number))

    def open_file(self, name, flags, mode=0o600, *, shared=False):
        self._refuse("read" if flags == os.O_RDONLY else "lock")
        return super().open_file(name, flags, mode)

    def write_new(self, name, data, *, durable=True, mode=0o600):
        self._refuse("write")
        super().write_new(name, data)

    def sync(self):
        self._refuse("sync")
        super().sync()


# -- what is made of a key -----------------------------------------------------------------------------------------


def test_key_id_is_derived_as_documented():
    assert hkdf(KEY, b"", b"sage-sandbox key id", 8).hex() == key_id(KEY)
    assert key_id(KEY) == Keys([KEY]).id


@pytest.mark.parametrize("purpose", ["seal", "authenticate", "audit"])
def test_working_key_is_derived_as_documented(purpose):
    expected = hkdf(KEY, bytes.fromhex(PROJECT), f"sage-sandbox {purpose}".encode(), 32)

    assert expected == Keys([KEY]).subkey(purpose, PROJECT)


def test_working_keys_of_purposes_projects_and_keys_are_all_different():
    keys = Keys([KEY, OTHER])
    subkeys = {
        keys.subkey(purpose, project, known)
        for purpose in ("seal", "authenticate", "audit")
        for project in (PROJECT, "ff" * 16)
        for known in (key_id(KEY), key_id(OTHER))
    }

    assert 12 == len(subkeys)
    assert {KEY, OTHER}.isdisjoint(subkeys)


def test_audit_key_is_the_current_keys_working_key_for_the_log():
    keys = Keys([KEY, OTHER])

    assert keys.subkey("audit", PROJECT, key_id(KEY)) == keys.audit_key(PROJECT)


def test_cipher_is_made_once_for_a_key_and_project():
    keys = Keys([KEY, OTHER])

    assert keys.cipher(PROJECT, keys.id) is keys.cipher(PROJECT, keys.id)
    assert keys.cipher(PROJECT, keys.id) is not keys.cipher(PROJECT, key_id(OTHER))


def test_working_key_of_a_key_that_is_not_here_is_refused():
    with pytest.raises(WrongKey) as refused:
        Keys([KEY]).subkey("audit", PROJECT, key_id(OTHER))

    assert key_id(OTHER) in refused.value.message


def test_first_key_is_current_and_the_others_are_known():
    keys = Keys([KEY, OTHER])

    assert key_id(KEY) == keys.id
    assert keys.knows(key_id(OTHER))
    assert not keys.knows(key_id(THIRD))


def test_retired_keys_of_another_open_and_do_not_seal(cheap):
    keys = Keys([KEY], encrypt=False).also(Keys([OTHER])).also(Keys(passphrases=[b"p"], salt=SALT))

    assert (key_id(KEY), False, b"") == (keys.id, keys.encrypt, keys.salt)
    assert keys.knows(key_id(OTHER))
    assert keys.knows(key_id(hashlib.sha256(b"p" + SALT).digest()), SALT)


def test_passphrase_stays_current_when_a_retired_key_is_added(cheap):
    keys = Keys(passphrases=[b"p"], salt=SALT).also(Keys([OTHER]))

    assert key_id(hashlib.sha256(b"p" + SALT).digest()) == keys.id
    assert keys.knows(key_id(OTHER))


def test_new_keys_differ():
    assert 3 == len({new_key(), new_key(), KEY})
    assert 32 == len(new_key())


def test_key_is_never_shown():
    keys = Keys([KEY, OTHER], passphrases=[b"correct horse"])

    assert f"<Keys of a key {key_id(KEY)}, encrypt=True>" == repr(keys)
    assert "<Keys of a passphrase, encrypt=True>" == repr(Keys(passphrases=[b"correct horse"], salt=SALT))


@pytest.mark.parametrize("leave", [pickle.dumps, copy.copy], ids=["pickle", "copy"])
def test_keys_do_not_leave_the_process(leave):
    with pytest.raises(TypeError, match="stay in the process"):
        leave(Keys([KEY]))


def test_keys_under_the_other_setting_are_the_same(cheap):
    keys = Keys([KEY], passphrases=[b"p"], salt=SALT)
    current = keys.id

    other = keys.encrypting(False)

    assert (True, False) == (keys.encrypt, other.encrypt)
    assert current == other.id
    assert other.knows(key_id(KEY))
    assert [(b"p", SALT)] == cheap


# -- passphrases ---------------------------------------------------------------------------------------------------


def test_passphrase_is_stretched_as_documented():
    # By the reference implementation of Argon2, version 1.3: id, 3 passes, 64 MiB, 4 lanes, 32 bytes.
    expected = "853b272a44db1421c02962669a55eb0994f3cab385ed1c4c79253eee19bab49e"

    keys = Keys(passphrases=[b"correct horse battery staple"], salt=SALT)

    assert key_id(bytes.fromhex(expected)) == keys.id


def test_passphrase_is_stretched_when_needed_and_once_for_a_salt(cheap):
    keys = Keys(passphrases=[b"p"], salt=SALT)
    before = list(cheap)

    assert [] == before
    assert keys.id == keys.id
    assert keys.knows(keys.id, SALT)
    assert not keys.knows("0" * 16, SALT)
    assert not keys.knows("0" * 16, b"\x01" * 16)
    assert not keys.knows("0" * 16, b"\x01" * 16)
    assert [(b"p", SALT), (b"p", b"\x01" * 16)] == cheap


def test_files_of_another_salt_are_opened_with_the_same_passphrase(cheap):
    old = Keys(passphrases=[b"p"], salt=b"\x01" * 16)

    assert Keys(passphrases=[b"p"], salt=SALT).knows(old.id, old.salt)


def test_known_key_needs_no_passphrase(cheap):
    keys = Keys([KEY], passphrases=[b"p"])

    assert keys.knows(key_id(KEY), SALT)
    assert [] == cheap


def test_strangers_salts_cost_no_more_than_a_bounded_time(cheap):
    own = Keys(passphrases=[b"p"], salt=SALT).id
    keys = Keys(passphrases=[b"p"], salt=SALT)
    cheap.clear()
    for number in range(1000):
        keys.knows("0" * 16, (number << 64).to_bytes(16, "big"))

    assert TRIES_MAX == len(cheap)
    assert keys.knows(own, SALT)


# -- sources -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [KEY.hex(), KEY.hex().upper(), base64.b64encode(KEY).decode(), f" {KEY.hex()}\n"],
    ids=["hex", "upper case", "base64", "white space around"],
)
def test_key_is_taken_from_the_environment(text, config):
    assert key_id(KEY) == find_keys({"SAGE_STATE_KEY": text}, config=config).id
    assert not config.exists()


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        KEY.hex()[:-1],
        KEY.hex() + "0",
        "g" * 64,
        KEY.hex()[:32] + "\n" + KEY.hex()[32:],
        base64.b64encode(KEY[:31]).decode(),
        base64.b64encode(KEY + b"x").decode(),
        base64.b64encode(KEY).decode().rstrip("="),
        base64.b64encode(KEY).decode()[:-2] + "9=",
        base64.urlsafe_b64encode(THIRD).decode(),
        "correct horse battery staple",
        "\u0660" * 64,
        "é" * 44,
    ],
)
def test_what_is_no_key_is_refused_and_not_repeated(text, config):
    with pytest.raises(UsageError) as refused:
        find_keys({"SAGE_STATE_KEY": text}, config=config)

    assert "SAGE_STATE_KEY is not a key" == refused.value.message
    assert "a key is 64 hex digits, or base64 of 32 bytes" == refused.value.hint


def test_key_file_is_named_by_the_environment(tmp_path, config):
    path = key_file(tmp_path / "key", KEY.hex(), "", base64.b64encode(OTHER).decode())

    keys = find_keys({"SAGE_STATE_KEY_FILE": str(path)}, config=config)

    assert key_id(KEY) == keys.id
    assert keys.knows(key_id(OTHER))
    assert not config.exists()


def test_key_file_may_be_reached_by_a_link(tmp_path):
    (tmp_path / "link").symlink_to(key_file(tmp_path / "key", KEY.hex()))

    assert key_id(KEY) == read_key_file(tmp_path / "link").id
    assert not read_key_file(tmp_path / "link", encrypt=False).encrypt


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o644, 0o610])
def test_key_file_that_others_may_use_is_refused(tmp_path, mode):
    path = key_file(tmp_path / "key", KEY.hex(), mode=mode)

    with pytest.raises(UsageError) as refused:
        read_key_file(path)

    assert f"{path}: others may read this key" == refused.value.message
    assert f"chmod 600 {path}" == refused.value.hint


@pytest.mark.parametrize("mode", [0o600, 0o400])
def test_key_file_may_be_read_only(tmp_path, mode):
    assert key_id(KEY) == read_key_file(key_file(tmp_path / "key", KEY.hex(), mode=mode)).id


def test_key_file_that_is_a_pipe_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "key", 0o600)

    with pytest.raises(UsageError, match="is not a regular file"):
        read_key_file(tmp_path / "key")


def test_key_file_that_is_a_folder_is_refused(tmp_path):
    with pytest.raises(UsageError, match="is not a regular file"):
        read_key_file(tmp_path)


@pytest.mark.parametrize("name", ["missing", "missing/key", ""])
def test_key_file_that_is_not_there_is_named(tmp_path, config, name):
    path = tmp_path / name if name else ""

    with pytest.raises(UsageError, match=f"^{path} cannot be read: No such file or directory$"):
        find_keys({"SAGE_STATE_KEY_FILE": str(path)}, config=config)


def test_key_file_without_an_end_is_not_read_to_it(tmp_path):
    path = tmp_path / "key"
    path.touch(0o600)
    os.truncate(path, 1 << 40)

    with pytest.raises(UsageError, match="is too large for a file of keys"):
        read_key_file(path)


def test_key_file_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    path = key_file(tmp_path / "key", KEY.hex())

    def read(fd, size):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, "read", read)
        with pytest.raises(UsageError) as refused:
            read_key_file(path)

    assert f"{path} cannot be read: Input/output error" == refused.value.message


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ((), "holds no key"),
        (("", " "), "holds no key"),
        ((KEY.hex(), "", "secret text"), "line 3, is not a key"),
        ((f"{KEY.hex()} {OTHER.hex()}",), "line 1, is not a key"),
    ],
)
def test_key_file_with_something_else_in_it_is_refused_by_line(tmp_path, lines, message):
    path = key_file(tmp_path / "key", *lines)

    with pytest.raises(UsageError) as refused:
        read_key_file(path)

    assert message in refused.value.message
    assert str(path) in refused.value.message
    assert "secret text" not in refused.value.message


def test_key_file_of_bytes_that_are_no_text_is_refused(tmp_path):
    path = tmp_path / "key"
    path.write_bytes(bytes(range(128, 160)))
    path.chmod(0o600)

    with pytest.raises(UsageError, match="line 1, is not a key"):
        read_key_file(path)


def test_passphrase_is_taken_from_the_environment(config, cheap):
    keys = find_keys({"SAGE_STATE_PASSPHRASE": "p\udcff"}, config=config, salt=SALT)

    assert SALT == keys.salt
    assert key_id(hashlib.sha256(b"p\xff" + SALT).digest()) == keys.id
    assert not config.exists()


def test_passphrase_without_a_salt_gets_a_fresh_one(config):
    one, other = (find_keys({"SAGE_STATE_PASSPHRASE": "p"}, config=config) for _ in range(2))

    assert 16 == len(one.salt)
    assert one.salt != other.salt


def test_empty_passphrase_is_refused(config):
    with pytest.raises(UsageError, match="SAGE_STATE_PASSPHRASE is empty"):
        find_keys({"SAGE_STATE_PASSPHRASE": ""}, config=config)


def test_sources_have_an_order(tmp_path, config, cheap):
    environ = {
        "SAGE_STATE_KEY": KEY.hex(),
        "SAGE_STATE_KEY_FILE": str(key_file(tmp_path / "key", OTHER.hex())),
        "SAGE_STATE_PASSPHRASE": "p",
    }
    kept = find_keys({}, config=config).id
    found = []
    for name in (*environ, ""):
        found.append(find_keys(environ, config=config, salt=SALT, ask_passphrase=pytest.fail).id)
        environ.pop(name, None)

    assert [key_id(KEY), key_id(OTHER), key_id(hashlib.sha256(b"p" + SALT).digest()), kept] == found


@pytest.mark.parametrize(
    ("text", "encrypt"),
    [("true", True), ("1", True), ("TRUE", True), (" true ", True), ("false", False), ("False", False), ("0", False)],
)
def test_setting_says_whether_state_is_encrypted(text, encrypt, config):
    assert encrypt is find_keys({"SAGE_STATE_KEY": KEY.hex(), "SAGE_STATE_ENCRYPTION": text}, config=config).encrypt


def test_state_is_encrypted_unless_the_user_says_otherwise(config):
    assert find_keys({}, config=config).encrypt


@pytest.mark.parametrize("text", ["", "no", "off", "2", "truee"])
def test_setting_that_is_neither_is_refused_before_a_key_is_made(text, config):
    with pytest.raises(UsageError, match="SAGE_STATE_ENCRYPTION is neither true nor false"):
        find_keys({"SAGE_STATE_ENCRYPTION": text}, config=config)

    assert not config.exists()


# -- the user's own file -------------------------------------------------------------------------------------------


def test_key_is_made_on_first_use_and_found_again(config):
    made = find_keys({}, config=config)
    path = config / "state.key"

    assert made.id == find_keys({}, config=config).id
    assert key_id(bytes.fromhex(path.read_text().removesuffix("\n"))) == made.id
    assert 65 == path.stat().st_size
    assert 0o600 == stat.S_IMODE(path.stat().st_mode)
    assert 0o700 == stat.S_IMODE(config.stat().st_mode)
    assert ["state.key", "state.key.lock"] == sorted(path.name for path in config.iterdir())


def test_key_is_looked_for_in_an_open_folder(made):
    with Folder.open(made) as folder:
        keys = find_keys({}, config=folder)

        assert folder.fd >= 0
    assert keys.id == find_keys({}, config=made).id


def test_no_key_is_made_for_a_reader(config):
    with pytest.raises(WrongKey) as refused:
        find_keys({}, config=config, make=False)

    assert f"there is no key at {config}/state.key" == refused.value.message
    assert "SAGE_STATE_KEY" in refused.value.hint
    assert not config.exists()


def test_no_key_is_made_for_a_reader_in_a_folder_that_is_there(made):
    with pytest.raises(WrongKey):
        find_keys({}, config=made, make=False)

    assert [] == list(made.iterdir())


def test_reader_finds_the_key_that_is_there(config):
    assert find_keys({}, config=config).id == find_keys({}, config=config, make=False).id


def test_reader_of_a_folder_that_cannot_be_opened_is_told_so(nowhere):
    with pytest.raises(UsageError, match=r"state\.key cannot be read: Not a directory"):
        find_keys({}, config=nowhere, make=False)


def test_where_no_key_can_be_kept_a_passphrase_is_asked_for(nowhere, cheap):
    keys = find_keys({}, config=nowhere, salt=SALT, ask_passphrase=lambda: "p")

    assert key_id(hashlib.sha256(b"p" + SALT).digest()) == keys.id


@pytest.mark.parametrize("ask", [None, lambda: None, lambda: ""], ids=["nobody to ask", "no answer", "empty answer"])
def test_without_key_and_passphrase_state_cannot_be_written(nowhere, ask):
    with pytest.raises(StateUnwritable) as refused:
        find_keys({}, config=nowhere, ask_passphrase=ask)

    assert (
        f"state cannot be written: no key can be kept at {nowhere}/state.key: Not a directory" == refused.value.message
    )
    assert "set SAGE_STATE_KEY, SAGE_STATE_KEY_FILE or SAGE_STATE_PASSPHRASE" == refused.value.hint
    assert f"{nowhere}/state.key" == refused.value.path


@pytest.mark.parametrize("act", ["lock", "write", "sync"])
def test_disk_that_refuses_is_named(made, act, monkeypatch):
    monkeypatch.setattr(Refusing, "act", act)

    with (
        Refusing.open(made) as folder,
        pytest.raises(StateUnwritable, match=r"(?i)no key can be kept at .*no space left"),
    ):
        find_keys({}, config=folder)


def test_folder_that_vanishes_meanwhile_is_no_reader_without_a_key(made, monkeypatch):
    monkeypatch.setattr(Refusing, "act", "write")
    monkeypatch.setattr(Refusing, "number", errno.ENOENT)

    with Refusing.open(made) as folder, pytest.raises(StateUnwritable, match=r"No such file or directory"):
        find_keys({}, config=folder)


def test_key_that_is_there_and_cannot_be_read_is_not_replaced_by_another_source(made, monkeypatch):
    find_keys({}, config=made)
    monkeypatch.setattr(Refusing, "act", "read")
    monkeypatch.setattr(Refusing, "number", errno.EACCES)

    with (
        Refusing.open(made) as folder,
        pytest.raises(UsageError, match=r"state\.key cannot be read: Permission denied"),
    ):
        find_keys({}, config=folder, ask_passphrase=pytest.fail)


def test_damaged_key_file_is_refused_and_left(made):
    path = key_file(made / "state.key", "half a ke")

    with pytest.raises(UsageError, match="line 1, is not a key"):
        find_keys({}, config=made, ask_passphrase=pytest.fail)

    assert "half a ke\n" == path.read_text()


@pytest.mark.parametrize("mode", [0o640, 0o644])
def test_own_key_that_others_may_read_is_refused(made, mode):
    key_file(made / "state.key", KEY.hex(), mode=mode)

    with pytest.raises(UsageError, match="others may read this key"):
        find_keys({}, config=made)


def test_own_key_is_not_reached_by_a_link(tmp_path, made):
    (made / "state.key").symlink_to(key_file(tmp_path / "key", KEY.hex()))

    with pytest.raises(Untrusted, match="is a symbolic link"):
        find_keys({}, config=made)


def test_key_of_whoever_was_first_counts(made, monkeypatch):
    acquire = keys_module.acquire  # type: ignore[attr-defined]

    def acquire_too_late(folder, name, **how):
        key_file(made / "state.key", OTHER.hex())
        return acquire(folder, name, **how)

    monkeypatch.setattr(keys_module, "acquire", acquire_too_late)

    assert key_id(OTHER) == find_keys({}, config=made).id


PROGRAM = """
import sys
from pathlib import Path
from sage_sandbox.store.keys import find_keys
print("ready", flush=True)
sys.stdin.read()
print(find_keys({}, config=Path(sys.argv[1])).id)
"""


def test_processes_that_start_together_make_one_key(config):
    argv = [sys.executable, "-c", PROGRAM, str(config)]
    started = [
        subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(6)
    ]
    for process in started:
        assert "ready\n" == process.stdout.readline()  # type: ignore[union-attr]
    for process in started:
        process.stdin.close()  # type: ignore[union-attr]
    said = {process.stdout.read() + process.stderr.read() for process in started}  # type: ignore[union-attr]
    codes = {process.wait() for process in started}
    for process in started:
        process.stdout.close()  # type: ignore[union-attr]
        process.stderr.close()  # type: ignore[union-attr]

    assert {0} == codes
    assert {find_keys({}, config=config).id + "\n"} == said


def test_what_a_killed_process_left_is_swept(made):
    left = key_file(made / "state.key.0123abcd.tmp", KEY.hex())

    find_keys({}, config=made)

    assert not left.exists()


# -- rotating ------------------------------------------------------------------------------------------------------


def test_new_key_comes_first_and_the_old_ones_still_open(config):
    first = find_keys({}, config=config)

    second = rotate(config)
    third = rotate(config, encrypt=False)

    assert 3 == len({first.id, second.id, third.id})
    assert third.knows(first.id)
    assert third.knows(second.id)
    assert (True, False) == (second.encrypt, third.encrypt)
    assert third.id == find_keys({}, config=config).id
    assert 0o600 == stat.S_IMODE((config / "state.key").stat().st_mode)


def test_old_lines_are_kept_as_they_are(made):
    path = key_file(made / "state.key", base64.b64encode(KEY).decode(), "", OTHER.hex().upper())
    before = path.read_text()

    with Folder.open(made) as folder:
        rotate(folder)

    assert before == path.read_text().partition("\n")[2]


def test_rotating_without_a_key_makes_the_first(config):
    assert rotate(config).id == find_keys({}, config=config).id


def test_damaged_key_file_is_not_rotated(made):
    path = key_file(made / "state.key", "half a ke")

    with pytest.raises(UsageError, match="is not a key"):
        rotate(made)

    assert "half a ke\n" == path.read_text()


def test_key_file_does_not_grow_beyond_what_can_be_read(made):
    path = key_file(made / "state.key", *[KEY.hex()] * 1008)

    with pytest.raises(UsageError, match=r"state\.key is full"):
        rotate(made)

    assert 1008 * 65 == path.stat().st_size


@pytest.mark.parametrize("act", ["write", "sync"])
def test_disk_that_refuses_a_new_key_is_named(made, act, monkeypatch):
    find_keys({}, config=made)
    monkeypatch.setattr(Refusing, "act", act)

    with Refusing.open(made) as folder, pytest.raises(StateUnwritable, match=r"no key can be kept at .*No space left"):
        rotate(folder)


def test_failed_rotation_keeps_the_key(made, monkeypatch):
    before = find_keys({}, config=made).id
    monkeypatch.setattr(Refusing, "act", "write")

    with Refusing.open(made) as folder, pytest.raises(StateUnwritable):
        rotate(folder)

    assert before == find_keys({}, config=made).id


def test_two_that_rotate_wait_for_each_other(made, monkeypatch):
    monkeypatch.setattr(keys_module, "LOCK_WAIT_S", 0.0)

    with Folder.open(made) as folder:
        lock = keys_module.acquire(folder, "state.key.lock", wait_s=0, who="somebody")  # type: ignore[attr-defined]
        with lock, pytest.raises(Locked, match="somebody"):
            rotate(folder)
