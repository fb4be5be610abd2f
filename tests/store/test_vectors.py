"""Every vector in vectors/ ends as it says; see the README there."""

from __future__ import annotations

import base64
import json
from collections import Counter
from pathlib import Path

import pytest

from sage_sandbox import errors
from sage_sandbox.store.envelope import Opened, Subject, open_sealed, peek, seal
from sage_sandbox.store.keys import Keys

VECTORS = sorted((Path(__file__).parent / "vectors").glob("*.json"))
SUBJECT = ("project", "feature", "run", "kind", "name", "number")


def of_path(path):
    return pytest.param(json.loads(path.read_text(encoding="utf-8")), id=path.stem)


def is_good(path):
    return "opens" in json.loads(path.read_text(encoding="utf-8"))


def bytes_of(record, field):
    return record[field].encode() if field in record else base64.b64decode(record[f"{field}Base64"])


def keys_of(vector, data):
    if "passphrase" in vector:
        return Keys(passphrases=[vector["passphrase"].encode()], salt=peek(data).salt or b"0" * 16)
    return Keys([bytes.fromhex(key) for key in vector["keys"]], encrypt=vector["encrypt"])


def opened(vector):
    data = bytes_of(vector, "file")
    expected = None if vector["expected"] is None else Subject(**vector["expected"])
    return open_sealed(data, expected, keys_of(vector, data), path="the file")


@pytest.mark.parametrize("vector", [of_path(path) for path in VECTORS if not is_good(path)])
def test_bad_file_is_refused_as_its_vector_says(vector):
    error = getattr(errors, vector["error"])

    with pytest.raises(errors.SageError) as refused:
        opened(vector)

    assert error is type(refused.value)
    assert vector["says"] in refused.value.message
    assert refused.value.message.startswith("the file ")


@pytest.mark.parametrize("vector", [of_path(path) for path in VECTORS if is_good(path)])
def test_good_file_opens_to_what_its_vector_says(vector):
    holds = vector["opens"]
    subject = Subject(**{name: holds[name] for name in SUBJECT})

    assert Opened(subject, holds["generation"], bytes_of(holds, "payload"), holds["key"]) == opened(vector)


@pytest.mark.parametrize("vector", [of_path(path) for path in VECTORS if is_good(path)])
def test_good_file_is_what_would_be_sealed_today(vector):
    data = bytes_of(vector, "file")
    holds = opened(vector)
    keys = keys_of(vector, data)
    if keys.id != holds.key_id:
        keys = Keys([bytes.fromhex(vector["keys"][1])], encrypt=vector["encrypt"])

    assert data == seal(holds.payload, holds.subject, holds.generation, keys, nonce=lambda _: peek(data).nonce)


def test_most_vectors_are_of_bad_files():
    kinds = Counter(is_good(path) for path in VECTORS)

    assert kinds[True] >= 10
    assert kinds[False] >= 100
