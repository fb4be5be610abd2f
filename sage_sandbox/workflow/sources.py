"""The Python of a template: its files, read once and without following links, and whether it can be run at all."""

from __future__ import annotations

import ast
import errno
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

from sage_sandbox.frozen import frozen
from sage_sandbox.policy import MiB, format_size, is_hidden
from sage_sandbox.workflow.findings import did_you_mean, quote

FILE_MAX: Final = MiB
FILES_MAX: Final = 32 * MiB
ENTRY_NAMES: Final = ("params", "inputs", "tools")
_BLOCKS: Final = (ast.stmt, ast.ExceptHandler, ast.match_case)


class SourceReader:
    """Reads ``file:`` and ``files:`` beneath one folder; each file once, so that what was digested is what runs.

    ``known`` are texts that were read before, by name.
    """

    def __init__(self, folder: Path | None, known: Mapping[str, str] = MappingProxyType({})) -> None:
        self._folder = folder
        self._texts = dict(known)
        self._total = 0

    @property
    def texts(self) -> dict[str, str]:
        """What has been read, by name."""
        return self._texts

    def path_of(self, name: str) -> str:
        """Where a file is, for messages."""
        return str(self._folder / name) if self._folder else name

    def read(self, name: str) -> str:
        """The text of a file; ValueError, in the user's words, if it cannot be had."""
        if name not in self._texts:
            if trouble := _bad_name(name):
                raise ValueError(trouble)
            if self._folder is None:
                raise ValueError("this template has no folder that files could lie in")
            try:
                content = _read_beneath(self._folder, name.split("/"))
            except OSError as error:
                raise ValueError(_explain(error)) from None
            self._total += len(content)
            if self._total > FILES_MAX:
                raise ValueError(f"the files of the template are larger than {format_size(FILES_MAX)} together")
            self._texts[name] = _decode(content)
        return self._texts[name]


def _bad_name(name: str) -> str:
    parts = name.split("/")
    if any(part in ("", ".", "..") for part in parts) or "\\" in name or not name.isprintable():
        return "must be a plain path beneath the template's folder"
    if any(part.startswith(".") or is_hidden(part) for part in parts):
        return "must not be a hidden name"
    return "" if name.endswith(".py") else "must be a *.py file"


def _read_beneath(folder: Path, parts: list[str]) -> bytes:
    """Walk down one component at a time, so that no link is followed at any of them."""
    at = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for number, part in enumerate(parts, 1):
            kind = os.O_NONBLOCK if number == len(parts) else os.O_DIRECTORY
            below = os.open(part, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | kind, dir_fd=at)
            os.close(at)
            at = below
        return read_regular(at, FILE_MAX)
    finally:
        os.close(at)


def _explain(error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return "there is no such file in the template's folder"
    if isinstance(error, NotADirectoryError) or error.errno == errno.ELOOP:
        return "is or goes through a link or something that is no folder"
    return f"cannot be read: {(error.strerror or 'unknown error').lower()}"


def read_regular(descriptor: int, size_max: int) -> bytes:
    """All of an open regular file; ValueError for anything else, or more than ``size_max``."""
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        raise ValueError("is not a regular file")
    with os.fdopen(os.dup(descriptor), "rb") as file:
        content = file.read(size_max + 1)
    if len(content) > size_max:
        raise ValueError(f"is larger than {format_size(size_max)}")
    return content


def _decode(content: bytes) -> str:
    try:
        return content.removeprefix(b"\xef\xbb\xbf").decode()
    except UnicodeDecodeError:
        raise ValueError("is not UTF-8") from None


@frozen
class CodeTrouble:
    """Why a source cannot run, and where in it (1-based; 0 where the parser does not know)."""

    message: str
    line: int = 0
    column: int = 0


def check_module(code: str) -> CodeTrouble | None:
    """Whether the text is Python at all."""
    parsed = _parse(code)
    return parsed if isinstance(parsed, CodeTrouble) else None


def check_entry(code: str) -> CodeTrouble | None:
    """Whether the text is Python that an operation can start from: a top-level ``run`` that can be called."""
    parsed = _parse(code)
    if isinstance(parsed, CodeTrouble):
        return parsed
    names = []
    for name, node in _top_level_names(parsed):
        if name in ("run", "*"):
            return _check_signature(node)
        names.append(name)
    return CodeTrouble(f"no function named run{did_you_mean('run', names)}: define run(params, inputs, tools)")


_NO_SOURCE: Final = "not Python: it holds a NUL character or something else that source text cannot"


def _parse(code: str) -> ast.Module | CodeTrouble:
    if len(code) > FILE_MAX:
        return CodeTrouble(f"is larger than {format_size(FILE_MAX)}")
    if "\0" in code:  # a ValueError or a SyntaxError, depending on the patch version of Python 3.11
        return CodeTrouble(_NO_SOURCE)
    try:
        return ast.parse(code)
    except SyntaxError as error:
        return CodeTrouble(f"not Python: {error.msg}", error.lineno or 0, error.offset or 0)
    except (RecursionError, MemoryError):
        return CodeTrouble("not Python: nested too deeply")
    except ValueError:
        return CodeTrouble(_NO_SOURCE)


def _top_level_names(module: ast.Module) -> Iterator[tuple[str, ast.AST]]:
    """What the module binds outside of functions and classes, as far as one can see without running it."""
    pending: list[ast.AST] = list(reversed(module.body))
    while pending:
        node = pending.pop()
        for name in _bound_by(node):
            yield name, node
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            children = [child for child in ast.iter_child_nodes(node) if isinstance(child, _BLOCKS)]
            pending.extend(reversed(children))


def _bound_by(node: ast.AST) -> list[str]:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [node.name]
    if isinstance(node, ast.Import | ast.ImportFrom):
        return [alias.asname or alias.name for alias in node.names]
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return [target.id for target in targets if isinstance(target, ast.Name)]


def _check_signature(node: ast.AST) -> CodeTrouble | None:
    """``run`` is called with those of the three names it has; anything else it insists on would never come."""
    if isinstance(node, ast.AsyncFunctionDef):
        return CodeTrouble("run must be a plain function, not async", node.lineno, node.col_offset + 1)
    if not isinstance(node, ast.FunctionDef):
        return None
    for argument in _required(node.args):
        if argument.arg not in ENTRY_NAMES:
            message = f"run may take params, inputs and tools; nothing is passed for {quote(argument.arg)}"
            return CodeTrouble(message, argument.lineno, argument.col_offset + 1)
    return None


def _required(arguments: ast.arguments) -> Iterator[ast.arg]:
    positional = arguments.posonlyargs + arguments.args
    yield from positional[: len(positional) - len(arguments.defaults)]
    for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        if default is None:
            yield argument
