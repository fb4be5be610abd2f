"""Text that somebody else wrote, made fit for a terminal."""

from __future__ import annotations

import re

# C0 and C1 controls, DEL, lone surrogates, line and paragraph separators, and what reorders or hides text
# (bidi controls, zero-width and other invisible format characters, tags): Unicode TR36 and CVE-2021-42574.
_UNSAFE = re.compile(
    "[\x00-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u2028-\u202e\u2060-\u206f"
    "\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\ud800-\udfff"
    "\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)


def escape(text: str) -> str:
    r"""Replace every character a terminal acts on, or a reader does not see, by its ``\x1b`` or ``\u202e`` form."""
    return _UNSAFE.sub(_spell, text)


def escape_lines(text: str) -> str:
    """Escape, but leave line feeds and tabs alone: for text that is shown as lines."""
    return "\n".join("\t".join(escape(cell) for cell in line.split("\t")) for line in text.split("\n"))


def clip(text: str, width: int) -> str:
    """Escape, then cut to ``width`` characters, an ellipsis marking the cut."""
    safe = escape(text)
    return safe if len(safe) <= width else safe[: max(width - 1, 0)] + "…"


def _spell(match: re.Match[str]) -> str:
    code = ord(match.group())
    if code <= 0xFF:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"
