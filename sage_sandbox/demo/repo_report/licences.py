"""Under which licences a repository comes: licence files by their words, SPDX tags, and what manifests declare."""

from __future__ import annotations

import json
import re
import tomllib
from typing import Any

from sources import MAX_TEXT_BYTES, File, clipped, number, shown, text_of, tree

LICENCE_FILE = re.compile(r"(?:.*[-_.])?(?:licen[cs]es?|copying|unlicense)(?:[-_.].*)?", re.IGNORECASE)
CODE_SUFFIXES = (".py", ".pyi", ".js", ".ts", ".go", ".rs", ".c", ".h", ".java", ".rb", ".sh", ".html", ".css", ".json")

SPDX_TAG = re.compile(rb"SPDX-License-Identifier:[ \t]*([A-Za-z0-9.+() -]{1,100})")
TAG_WITHIN = 4096

WORDS = (
    ("Apache-2.0", ("apache license version 2.0",)),
    ("BSL-1.0", ("boost software license - version 1.0",)),
    ("CC0-1.0", ("cc0 1.0 universal",)),
    ("CC-BY-4.0", ("creative commons attribution 4.0 international",)),
    ("CC-BY-SA-4.0", ("creative commons attribution-sharealike 4.0 international",)),
    ("EPL-2.0", ("eclipse public license - v 2.0",)),
    ("MPL-2.0", ("mozilla public license version 2.0",)),
    ("PSF-2.0", ("python software foundation license version 2",)),
    ("Unlicense", ("this is free and unencumbered software released into the public domain",)),
    ("Zlib", ("altered source versions must be plainly marked as such",)),
)
"""Licences told by words that no other has; spaces and commas do not count."""

ISC = re.compile(
    r"permission to use copy modify and (or )?distribute this software for any purpose with or without fee"
)
GNU = re.compile(r"gnu (affero|lesser|library|)\s?general public license\W{0,8}version (\d(?:\.\d)?)")
GNU_NAMES = {"affero": "AGPL", "lesser": "LGPL", "library": "LGPL", "": "GPL"}


def run(params: Any) -> dict[str, Any]:
    """Name the licence of every licence file, count the SPDX tags, list what manifests declare."""
    top = number(params, "top", 10, 1000)
    found = tree()
    files: list[dict[str, Any]] = []
    declared: list[dict[str, str]] = []
    tags: dict[str, int] = {}
    for file, data in found.texts(lambda _: True, number(params, "max_file_bytes", MAX_TEXT_BYTES, 64 << 20)):
        if is_licence_file(file):
            files.append({"path": shown(file.path), "licences": licences(text_of(data)) or ["unrecognised"]})
        elif tag := SPDX_TAG.search(data, 0, TAG_WITHIN):
            name = tag[1].decode("ascii").strip(" -")
            tags[name] = tags.get(name, 0) + 1
        if (declaration := declaration_of(file.name, data)) is not None:
            declared.append({"path": shown(file.path), "licence": clipped(declaration, 100)})
    ranked = sorted(tags, key=lambda name: (-tags[name], name))
    return {
        "files": files[: 10 * top],
        "files_total": len(files),
        "tags": [{"licence": name, "files": tags[name]} for name in ranked[:top]],
        "declared": declared[:top],
        "skipped": found.skipped,
    }


def is_licence_file(file: File) -> bool:
    """``LICENSE``, ``LICENCE-MIT``, ``COPYING.LESSER``, ``third_party.licenses.txt``, but not ``license.py``."""
    name = file.name.lower()
    return LICENCE_FILE.fullmatch(name) is not None and not name.endswith(CODE_SUFFIXES)


def licences(text: str) -> list[str]:
    """The licences whose words are in a text, by their SPDX names."""
    words = re.sub(r"[\s,#*/\"'`]+", " ", text.lower())
    names = [name for name, phrases in WORDS if all(phrase in words for phrase in phrases)]
    names += [name for name in (gnu(words), permissive(words), bsd(words)) if name]
    return sorted(names)


def gnu(words: str) -> str | None:
    """The first one named is the one meant: the GPL speaks of the AGPL and the LGPL of the GPL, but later."""
    match = GNU.search(words)
    if match is None:
        return None
    version = match[2] if "." in match[2] else f"{match[2]}.0"
    return f"{GNU_NAMES[match[1]]}-{version}"


def permissive(words: str) -> str | None:
    """The short ones that grant everything: with or without the duty to keep the notice."""
    if "boost software license" not in words and "permission is hereby granted free of charge to any person" in words:
        return "MIT" if "this permission notice" in words else "MIT-0"
    if ISC.search(words):
        return "ISC" if "provided that the above copyright notice" in words else "0BSD"
    return None


def bsd(words: str) -> str | None:
    """By the number of its clauses."""
    if "redistribution and use in source and binary forms" not in words:
        return None
    if "all advertising materials mentioning features" in words:
        return "BSD-4-Clause"
    return "BSD-3-Clause" if re.search(r"neither the names? of|may not be used to endorse", words) else "BSD-2-Clause"


def declaration_of(name: str, data: bytes) -> str | None:
    """What a manifest says its licence is; None if this is none, it says nothing, or it cannot be read."""
    if name not in ("pyproject.toml", "Cargo.toml", "package.json", "composer.json"):
        return None
    try:
        if name.endswith(".json"):
            return words_of(json.loads(data).get("license"))
        table = tomllib.loads(data.decode("utf-8")).get("project" if name == "pyproject.toml" else "package", {})
        return words_of(table.get("license"))
    except (ValueError, AttributeError, RecursionError):
        return None


def words_of(value: Any) -> str | None:
    """A licence field: a name, ``{text = …}``, ``{file = …}``, ``{type: …}``, or a list of names."""
    if isinstance(value, dict):
        value = value.get("text") or value.get("type") or value.get("file")
    if isinstance(value, list):
        value = " OR ".join(one for one in value if isinstance(one, str))
    return value.strip().split("\n")[0] if isinstance(value, str) and value.strip() else None
