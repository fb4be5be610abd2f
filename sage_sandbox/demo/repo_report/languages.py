"""Which languages a repository is written in: files, lines and bytes of each."""

from __future__ import annotations

from typing import Any

from sources import MAX_TEXT_BYTES, File, number, tree

BY_SUFFIX = {
    "asm": "Assembly", "s": "Assembly", "bash": "Shell", "bat": "Batch", "c": "C", "h": "C", "cc": "C++",
    "cpp": "C++", "cxx": "C++", "hpp": "C++", "hh": "C++", "clj": "Clojure", "cmake": "CMake", "cs": "C#",
    "css": "CSS", "csv": "CSV", "dart": "Dart", "el": "Emacs Lisp", "erl": "Erlang", "ex": "Elixir", "exs": "Elixir",
    "f90": "Fortran", "fs": "F#", "go": "Go", "gradle": "Gradle", "graphql": "GraphQL", "groovy": "Groovy",
    "hs": "Haskell", "htm": "HTML", "html": "HTML", "ini": "INI", "cfg": "INI", "java": "Java", "jl": "Julia",
    "js": "JavaScript", "mjs": "JavaScript", "cjs": "JavaScript", "jsx": "JavaScript", "json": "JSON", "kt": "Kotlin",
    "kts": "Kotlin", "less": "CSS", "lua": "Lua", "m": "Objective-C", "md": "Markdown", "markdown": "Markdown",
    "mk": "Makefile", "ml": "OCaml", "mli": "OCaml", "nim": "Nim", "nix": "Nix", "php": "PHP", "pl": "Perl",
    "pm": "Perl", "po": "Gettext", "proto": "Protocol Buffers", "ps1": "PowerShell", "py": "Python", "pyi": "Python",
    "pyx": "Cython", "r": "R", "rb": "Ruby", "rs": "Rust", "rst": "reStructuredText", "sass": "CSS", "scala": "Scala",
    "scss": "CSS", "sh": "Shell", "sol": "Solidity", "sql": "SQL", "svelte": "Svelte", "svg": "SVG", "swift": "Swift",
    "tex": "TeX", "tf": "Terraform", "toml": "TOML", "ts": "TypeScript", "tsx": "TypeScript", "txt": "Text",
    "vim": "Vim script", "vue": "Vue", "xml": "XML", "yaml": "YAML", "yml": "YAML", "zig": "Zig", "zsh": "Shell",
}  # fmt: skip

BY_NAME = {
    "makefile": "Makefile", "gnumakefile": "Makefile", "dockerfile": "Dockerfile", "containerfile": "Dockerfile",
    "cmakelists.txt": "CMake", "gemfile": "Ruby", "rakefile": "Ruby", "vagrantfile": "Ruby", "jenkinsfile": "Groovy",
    "build": "Starlark", "build.bazel": "Starlark", "workspace": "Starlark", "meson.build": "Meson", "justfile": "Just",
}  # fmt: skip

BY_INTERPRETER = {
    "python": "Python", "sh": "Shell", "bash": "Shell", "dash": "Shell", "zsh": "Shell", "perl": "Perl", "ruby": "Ruby",
    "node": "JavaScript", "deno": "TypeScript", "php": "PHP", "lua": "Lua", "awk": "Awk",
}  # fmt: skip

OTHER = "Other"


def run(params: Any) -> dict[str, Any]:
    """Count every text file of the repository under its language; the largest ``top`` languages come first."""
    top = number(params, "top", 10, 1000)
    found = tree()
    counts: dict[str, dict[str, int]] = {}
    for file, data in found.texts(lambda _: True, number(params, "max_file_bytes", MAX_TEXT_BYTES, 64 << 20)):
        count = counts.setdefault(language(file, data), {"files": 0, "lines": 0, "bytes": 0})
        count["files"] += 1
        count["lines"] += lines(data)
        count["bytes"] += len(data)
    ranked = sorted(counts, key=lambda name: (-counts[name]["lines"], name))
    return {
        "languages": [{"language": name, **counts[name]} for name in ranked[:top]],
        "more_languages": len(ranked[top:]),
        "total": {key: sum(count[key] for count in counts.values()) for key in ("files", "lines", "bytes")},
        "listed_files": len(found.files),
        "skipped": found.skipped,
    }


def language(file: File, data: bytes) -> str:
    """By the whole name, else the suffix, else the first line of a script."""
    name = file.name.lower()
    if name in BY_NAME:
        return BY_NAME[name]
    stem, dot, suffix = name.rpartition(".")
    if dot and stem and suffix in BY_SUFFIX:
        return BY_SUFFIX[suffix]
    return by_first_line(data) or OTHER


def by_first_line(data: bytes) -> str | None:
    """The language of a ``#!`` line: ``#!/usr/bin/env -S python3 -I`` is Python."""
    if not data.startswith(b"#!"):
        return None
    words = data[2:200].split(b"\n", 1)[0].decode("ascii", "replace").split()
    if words and words[0].endswith("/env"):
        words = [word for word in words[1:] if not word.startswith("-") and "=" not in word]
    interpreter = words[0].rpartition("/")[2].rstrip("0123456789.") if words else ""
    return BY_INTERPRETER.get(interpreter)


def lines(data: bytes) -> int:
    """Lines as an editor numbers them: a last one without a line feed counts."""
    return data.count(b"\n") + (not data.endswith(b"\n") and bool(data))
