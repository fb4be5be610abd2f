"""From a template on disk to a checked Workflow, or to the list of everything that is wrong with it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

from sage_sandbox.errors import DefinitionError, Problem, UsageError
from sage_sandbox.escaping import clip
from sage_sandbox.frozen import frozen
from sage_sandbox.workflow.definition import Template, Workflow
from sage_sandbox.workflow.findings import Findings, invalid, refuse
from sage_sandbox.workflow.parsing import FORMATS, SIZE_MAX, Format, parse
from sage_sandbox.workflow.pausing import collector_paused
from sage_sandbox.workflow.sources import SourceReader, read_regular

_DIGEST_DOMAIN: Final = b"sage-sandbox template 1\0"


@frozen
class Report:
    """What came of a template: the workflow unless a problem is an error, every problem, and the shape of its graph."""

    workflow: Workflow | None
    problems: tuple[Problem, ...]
    graph: Mapping[str, int]


def load(path: Path | str) -> Workflow:
    """Read and check a template; DefinitionError with every problem if it is wrong, UsageError if it is not there."""
    return _workflow_of(inspect(path), str(path))


def load_text(
    text: str | bytes, kind: Format, source: str = "template", base_folder: Path | str | None = None
) -> Workflow:
    """Check a template that is already in memory; ``file:`` needs a ``base_folder``."""
    return _workflow_of(inspect_text(text, kind, source, base_folder), source)


def load_stored(template: Template, source: str) -> Workflow:
    """The workflow of a template that was read before; nothing is read from the disk."""
    reader = SourceReader(None, template.files)
    return _workflow_of(_inspect(template.text.encode(), template.kind, source, reader), source)


def differs_on_disk(template: Template, source: str) -> tuple[str, ...]:
    """The files of a template that are not what was read then: its own path, and names beneath its folder."""
    path = Path(source)
    changed = []
    try:
        if _read(path, SIZE_MAX[template.kind]) != template.text.encode():
            changed.append(source)
    except (DefinitionError, UsageError):
        changed.append(source)
    reader = SourceReader(path.parent)
    for name, text in template.files.items():
        try:
            same = reader.read(name) == text
        except ValueError:
            same = False
        if not same:
            changed.append(name)
    return tuple(changed)


def _workflow_of(report: Report, source: str) -> Workflow:
    if report.workflow is None:
        raise invalid(source, report.problems)
    return report.workflow


def inspect(path: Path | str) -> Report:
    """Like `load`, but an invalid template is a report too; only a file that cannot be opened raises."""
    path = Path(path)
    kind = FORMATS.get(path.suffix.lower())
    if kind is None:
        raise UsageError(f"{clip(str(path), 200)} is no template", "its name must end in " + ", ".join(FORMATS))
    try:
        content = _read(path, SIZE_MAX[kind])
    except DefinitionError as error:
        return Report(None, error.problems, _NO_GRAPH)
    return inspect_text(content, kind, str(path), path.parent)


_NO_GRAPH: Final[Mapping[str, int]] = {"nodes": 0, "edges": 0, "depth": 0}


def _read(path: Path, size_max: int) -> bytes:
    """The bytes of a regular file. The user named it, so a link is followed; a FIFO must not block."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not a path"
        raise UsageError(f"cannot open {clip(str(path), 200)}: {reason.lower()}") from None
    try:
        return read_regular(descriptor, size_max)
    except ValueError as error:
        raise refuse(str(path), str(error)) from None
    finally:
        os.close(descriptor)


def inspect_text(
    text: str | bytes, kind: Format, source: str = "template", base_folder: Path | str | None = None
) -> Report:
    """Like `load_text`, but an invalid template is a report too."""
    content = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
    return _inspect(content, kind, source, SourceReader(None if base_folder is None else Path(base_folder)))


def _inspect(content: bytes, kind: Format, source: str, reader: SourceReader) -> Report:
    findings = Findings()
    from sage_sandbox.workflow.building import Builder  # loads pydantic

    try:
        with collector_paused():
            document = parse(content, kind, source, findings)
            workflow, graph = Builder(document.locator, reader, findings).build(document.data)
    except DefinitionError as error:
        return Report(None, error.problems, _NO_GRAPH)
    if workflow:
        template = Template(kind, content.decode(), reader.texts)
        workflow = replace(workflow, source=source, digest=_digest(content, kind, reader.texts), template=template)
    return Report(workflow, findings.problems(source, document.locator), graph)


def _digest(content: bytes, kind: Format, texts: Mapping[str, str]) -> str:
    """Each part is preceded by its length, so that no two sets of parts are the same bytes."""
    digest = hashlib.sha256(_DIGEST_DOMAIN)
    parts = [kind.encode(), content]
    for name in sorted(texts):
        parts += [name.encode(), texts[name].encode()]
    for part in parts:
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.hexdigest()
