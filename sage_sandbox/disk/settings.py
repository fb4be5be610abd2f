"""What the user set in their own ``config.toml``; no project's is ever read here."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from sage_sandbox.disk.files import Folder
from sage_sandbox.errors import UsageError

CONFIG: Final = "config.toml"
SIZE_MAX: Final = 1 << 20


def user_settings(config: Path) -> Mapping[str, Any]:
    """The settings in the folder ``config``; none where there is no such file, or no folder that we may look into.

    UsageError if there is one that cannot be read, or that is not TOML: what somebody set is not passed over.
    """
    try:
        folder = Folder.open(config)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return {}  # HOME is /dev/null, /nonexistent or somebody else's: then nobody ever set anything there
    path = config / CONFIG
    with folder, suppress(FileNotFoundError):
        try:
            text = folder.read(CONFIG, SIZE_MAX).decode()
            import tomllib  # few have settings

            return tomllib.loads(text)
        except PermissionError as error:
            raise UsageError(f"{path} cannot be read: permission denied") from error
        except ValueError as error:
            raise UsageError(f"{path} is not TOML: {error}") from error
    return {}
