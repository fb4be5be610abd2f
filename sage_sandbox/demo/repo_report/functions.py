"""The longest Python functions, found by parsing and never by running."""

from __future__ import annotations

import ast
import warnings
from collections.abc import Iterator
from statistics import median
from typing import Any

from sources import MAX_TEXT_BYTES, File, clipped, number, shown, tree

# A syntax tree can take 650 times the memory of its text (measured: `a=b;` repeated), and the operation has 256 MiB.
MAX_PARSED_BYTES = 256 << 10

Definition = ast.FunctionDef | ast.AsyncFunctionDef


def run(params: Any) -> dict[str, Any]:
    """Measure every function and method; the ``top`` longest, and the files that are not Python after all."""
    top = number(params, "top", 10, 1000)
    max_bytes = min(number(params, "max_file_bytes", MAX_TEXT_BYTES, 64 << 20), MAX_PARSED_BYTES)
    found = tree()
    parsed = 0
    lengths: list[int] = []
    longest: list[dict[str, Any]] = []
    broken: list[str] = []
    for file, data in found.texts(is_python, max_bytes):
        measured = measure(data)
        if measured is None:
            broken.append(shown(file.path))
            continue
        parsed += 1
        lengths += [length for _, _, length in measured]
        path = shown(file.path)
        longest += [{"name": name, "path": path, "line": line, "lines": length} for name, line, length in measured]
        longest = sorted(longest, key=lambda one: (-one["lines"], one["path"], one["line"]))[:top]
    return {
        "longest": longest,
        "functions": len(lengths),
        "median_lines": median(lengths) if lengths else 0,
        "files_parsed": parsed,
        "not_parsed": broken[:top],
        "not_parsed_total": len(broken),
        "skipped": found.skipped,
    }


def is_python(file: File) -> bool:
    """Whether the name says Python source."""
    return file.name.endswith((".py", ".pyw"))


def measure(data: bytes) -> list[tuple[str, int, int]] | None:
    """Name, first line and length of every function. The tree is gone before the next file's is made."""
    module = parse(data)
    if module is None:
        return None
    return [
        (clipped(name, 200), node.lineno, (node.end_lineno or node.lineno) - node.lineno + 1)
        for name, node in functions(module)
    ]


def parse(data: bytes) -> ast.Module | None:
    """The module, by its own coding line; None if no Python of this version, or too deep to parse."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return ast.parse(data)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return None


def functions(module: ast.Module) -> Iterator[tuple[str, Definition]]:
    """Every function with its dotted name, nested ones too; on a stack of our own, for trees may be very deep."""
    waiting: list[tuple[str, ast.AST]] = [("", module)]
    while waiting:
        prefix, node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield prefix + node.name, node
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            prefix = f"{prefix}{node.name}."[-400:]
        waiting.extend((prefix, child) for child in ast.iter_child_nodes(node) if not isinstance(child, ast.expr))
