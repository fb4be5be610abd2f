"""What an operation may touch and how much of the machine it may use: Policy, Limits, Grant, and their fixed lists.

Unset means nothing. A policy is narrowed on its way from a template to the kernel and never widened.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import fields
from fnmatch import fnmatchcase, translate
from typing import Final, Literal

from sage_sandbox.errors import UsageError
from sage_sandbox.frozen import frozen

KiB: Final = 1 << 10
MiB: Final = 1 << 20
GiB: Final = 1 << 30

GrantKind = Literal["read", "write", "write-through", "loopback", "net", "tool", "model", "env"]
GRANT_KINDS: Final[tuple[GrantKind, ...]] = (
    "read",
    "write",
    "write-through",
    "loopback",
    "net",
    "tool",
    "model",
    "env",
)

HIDDEN_NAMES: Final = (".sage", ".env*", ".git-credentials", ".netrc", ".npmrc", ".pypirc", "*.pem", "*.key", "id_*")
"""Names that a read grant on a folder does not show, at any depth, unless a grant names the very file.

``.git/config`` is replaced beside these (see `is_git_config`): it holds remotes with credentials, but git needs one.
"""

PROTECTED_NAMES: Final = (
    ".git", ".hg", ".svn", ".gitmodules", ".gitattributes", ".sage", ".envrc", ".env*", ".mcp.json", ".claude",
    ".cursor", ".codex", ".gemini", "agents.md", "claude.md", ".vscode", ".idea", ".devcontainer",
    ".pre-commit-config.yaml", ".husky", ".github/workflows", ".gitlab-ci.yml", ".npmrc", ".yarnrc*", ".pypirc",
    "pip.conf", "sitecustomize.py", "usercustomize.py", "*.pth", "conftest.py", ".tool-versions", "mise.toml",
    ".mise.toml", "claude.local.md", ".cursorrules", ".windsurfrules", ".clinerules", ".github/copilot-instructions.md",
    "lefthook.yml", ".circleci", ".gdbinit", ".exrc", "head", ".agents",
)  # fmt: skip
"""Names a write never reaches, at any depth, compared by `fold`: what other programs run or obey unasked.

``HEAD`` because git takes any folder that holds it beside ``objects`` and ``refs`` for a repository, and obeys the
``config`` in there (gitrepository-layout(5)).
"""

RUNS_LATER_NAMES: Final = (
    "makefile", "gnumakefile", "package.json", "setup.py", "noxfile.py", "tox.ini", "justfile", "rakefile", "build.rs",
    "cmakelists.txt", "dockerfile", "*.sh", "test_*.py", "*_test.py",
)  # fmt: skip
"""Writable, but code the user is likely to run: ``plan`` marks a write grant that covers them."""

STATE_KEY_NAMES: Final = ("SAGE_STATE_KEY", "SAGE_STATE_PASSPHRASE")
"""Environment names that hold what opens the state: their values never leave the coordinator, in whatever way."""

SECRET_NAMES: Final = (*STATE_KEY_NAMES, "SAGE_STATE_KEY_FILE", "ANTHROPIC_API_KEY", "OPENAI_API_KEY")
"""Environment names that no process but the coordinator and the broker may see."""

RESULT_MAX: Final = 16 * MiB
STREAM_KEPT: Final = 64 * KiB
STREAM_MAX: Final = 16 * MiB
ARTIFACTS_MAX: Final = 256 * MiB
ARTIFACT_FILES_MAX: Final = 1_000
ARTIFACT_DEPTH_MAX: Final = 16
RETRIES_MAX: Final = 10
CALLS_MAX: Final = 10_000
"""How often one operation may call tools, what it was not granted included."""


@frozen
class Policy:
    """What an operation may touch. As asked: text from a template. As granted: absolute, real paths.

    ``unprotected`` holds the names that a ``write!:`` grant took off `PROTECTED_NAMES` for one run; no template sets
    it.
    """

    read: tuple[str, ...] = ()
    write: tuple[str, ...] = ()
    write_through: tuple[str, ...] = ()
    net: tuple[str, ...] = ()
    loopback: bool = False
    tool: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    unprotected: tuple[str, ...] = ()
    model: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return any(getattr(self, field.name) for field in fields(self))

    @property
    def grants_paths(self) -> bool:
        """Whether anything of the host's files is granted."""
        return bool(self.read or self.write or self.write_through)

    @property
    def repeatable(self) -> bool:
        """Whether running the operation twice can be told from running it once only by its cost."""
        return not (self.write or self.write_through or self.net or self.tool or self.model)


@frozen
class Limits:
    """How much an operation may use: bytes and seconds, for the operation's processes together."""

    memory: int = 256 * MiB
    cpu_s: float = 60.0
    pids: int = 64
    disk: int = 64 * MiB
    timeout_s: float = 600.0


CEILING_CPU_S: Final = 3600.0
CEILING_TIMEOUT_S: Final = 24 * 3600.0
CEILING_PIDS: Final = 512
CEILING_DISK: Final = 4 * GiB


def ceilings(total_memory: int) -> Limits:
    """The most a template may ask for on a machine with this much memory (bytes)."""
    return Limits(total_memory // 2, CEILING_CPU_S, CEILING_PIDS, CEILING_DISK, CEILING_TIMEOUT_S)


@frozen
class Grant:
    """One thing the user allows: ``forced`` is the ``!`` of ``read!:`` and ``write!:``."""

    kind: GrantKind
    value: str = ""
    forced: bool = False

    def __str__(self) -> str:
        """The grant as ``--allow`` takes it."""
        return self.kind if self.kind == "loopback" else f"{self.kind}{'!' if self.forced else ''}:{self.value}"


def parse_grant(text: str) -> Grant:
    """Read ``KIND:VALUE`` (or ``loopback``) as typed after ``--allow``; UsageError on anything else."""
    if text == "loopback":
        return Grant("loopback")
    if text.startswith("loopback:"):
        raise UsageError("--allow loopback takes no value")
    word, colon, value = text.partition(":")
    forced = word.endswith("!")
    for kind in GRANT_KINDS:
        if kind == word.removesuffix("!") and kind != "loopback":
            if forced and kind not in ("read", "write"):
                break
            if not colon or not value:
                raise UsageError(f"--allow {kind} needs a value", f"write --allow {kind}:VALUE")
            if "\0" in value:
                raise UsageError(f"--allow {kind}: a NUL byte is in the value")
            if kind == "tool" and not is_tool_grant(value):
                raise UsageError("--allow tool takes SERVER/TOOL or SERVER/*", "such as tool:sage-research/*")
            if kind == "model" and not is_model_grant(value):
                raise UsageError("--allow model takes PROVIDER/MODEL, PROVIDER/* or *", "such as model:anthropic/*")
            return Grant(kind, value, forced)
    raise UsageError(f"--allow does not know {word!r}", "one of " + ", ".join(GRANT_KINDS))


_TOOL_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}/[A-Za-z0-9_./-]{1,128}")
_TOOL_GRANT = re.compile(r"[A-Za-z0-9_.-]{1,64}/(?:\*|[A-Za-z0-9_.-]{1,128})")


def is_tool_name(text: str) -> bool:
    """Whether this can be the name of a tool: ``server/tool``, with nothing in it that a path could climb by."""
    return _TOOL_NAME.fullmatch(text) is not None and not {"", ".", ".."} & {*text.split("/")}


def is_tool_grant(text: str) -> bool:
    """Whether this can be granted: ``server/tool``, or ``server/*`` for all tools of one server."""
    return _TOOL_GRANT.fullmatch(text) is not None and not {".", ".."} & {*text.split("/")}


def grants_tool(granted: Sequence[str], tool: str) -> bool:
    """Whether one of these grants allows calling ``tool``, or all that is asked by ``server/*``."""
    return tool in granted or every_tool(tool) in granted


def every_tool(tool: str) -> str:
    """The grant for all tools of this one's server."""
    return tool.split("/", maxsplit=1)[0] + "/*"


_MODEL_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}/[A-Za-z0-9][A-Za-z0-9._:/@-]{0,127}")
_MODEL_GRANT = re.compile(r"\*|[a-z0-9][a-z0-9_-]{0,31}/\*")


def is_model_name(text: str) -> bool:
    """Whether this can be the name of a model: ``provider/model``."""
    return _MODEL_NAME.fullmatch(text) is not None


def is_model_grant(text: str) -> bool:
    """Whether this can be granted: ``provider/model``, ``provider/*`` for all of a provider's, ``*`` for every one."""
    return _MODEL_GRANT.fullmatch(text) is not None or is_model_name(text)


def model_grants(model: str) -> tuple[str, str, str]:
    """The grants that allow asking a model, the narrowest first."""
    return model, model.split("/", maxsplit=1)[0] + "/*", "*"


def grants_model(granted: Sequence[str], model: str) -> bool:
    """Whether one of these grants allows asking ``model``, or all that is asked by ``provider/*``."""
    return any(grant in granted for grant in model_grants(model))


_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kKmMgG]?)(?:i?[bB])?")
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)")
_SECONDS: Final[Mapping[str, float]] = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def parse_size(value: int | str) -> int:
    """Bytes from ``268435456``, ``256M``, ``256MiB``; ValueError if it is neither or not positive."""
    match = _SIZE.fullmatch(str(value).strip())
    size = float(match[1]) * {"": 1, "k": KiB, "m": MiB, "g": GiB}[match[2].lower()] if match else 0
    if not 1 <= size < float("inf"):
        raise ValueError(f"{value!r} is not a size such as 256M")
    return int(size)


def parse_duration(value: float | str) -> float:
    """Seconds from a number of milliseconds or ``90s``, ``10m``; ValueError if it is neither or not positive."""
    if isinstance(value, str) and (match := _DURATION.fullmatch(value.strip())):
        seconds = float(match[1]) * _SECONDS[match[2]]
    else:
        try:
            seconds = float("nan") if isinstance(value, bool) else float(value) / 1000
        except (ValueError, OverflowError):
            seconds = float("nan")
    if not 0 < seconds < float("inf"):
        raise ValueError(f"{value!r} is not a duration such as 90s, 10m or a number of milliseconds")
    return seconds


def format_size(size: int) -> str:
    """``268435456`` as ``256 MiB``; the largest unit that keeps it readable."""
    for unit, name in ((GiB, "GiB"), (MiB, "MiB"), (KiB, "KiB")):
        if size >= unit:
            return f"{size / unit:.1f}".removesuffix(".0") + f" {name}"
    return f"{size} B"


def format_duration(seconds: float) -> str:
    """Seconds as the user writes them: ``450 ms``, ``90 s``, ``10 min``, ``2 h``."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    for unit, name in ((3600.0, "h"), (60.0, "min")):
        if seconds >= unit and seconds % unit == 0:
            return f"{seconds / unit:.0f} {name}"
    return f"{seconds:.1f}".removesuffix(".0") + " s"


# What casefolding ext4 and HFS+ do not see in a name: format characters, joiners, fillers, variation selectors
# (CVE-2014-9390: ".g\u200cit" was .git there).
_IGNORABLE = re.compile(
    "[\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164"
    "\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)


def fold(name: str) -> str:
    """A file name as a case-insensitive, normalising file system would compare it."""
    visible = _IGNORABLE.sub("", name).rstrip(". ")  # vfat drops what trails
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", visible).casefold())


# One expression: every name of every granted tree is asked about.
_HIDDEN = re.compile("|".join(translate(pattern) for pattern in HIDDEN_NAMES))


def is_hidden(name: str) -> bool:
    """Whether a folder grant leaves out entries of this name, in whatever case it is written."""
    return _HIDDEN.match(name.casefold()) is not None


def is_git_config(parts: Sequence[str]) -> bool:
    """Whether these path components end in a git configuration (``.git/config``, also of modules and worktrees)."""
    return len(parts) >= 2 and parts[-1] in ("config", "config.worktree") and ".git" in parts[:-1]


def is_protected(parts: Sequence[str], unprotected: Sequence[str] = ()) -> bool:
    """Whether a write to this relative path (its components) is refused, at whatever depth the name stands."""
    folded = [fold(part) for part in parts]
    spared = {fold(name) for name in unprotected}
    for pattern in PROTECTED_NAMES:
        size = pattern.count("/") + 1
        for start in range(len(folded) - size + 1):
            found = "/".join(folded[start : start + size])
            if fnmatchcase(found, pattern) and found not in spared:
                return True
    return False


def runs_later(name: str) -> bool:
    """Whether a file of this name is code that the user will likely run."""
    return any(fnmatchcase(fold(name), pattern) for pattern in RUNS_LATER_NAMES)
