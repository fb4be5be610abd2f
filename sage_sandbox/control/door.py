"""A listening socket at its place in the user's runtime folder, and whether it is still there."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from contextlib import ExitStack, suppress

from sage_sandbox.disk.files import Folder
from sage_sandbox.disk.places import open_runtime
from sage_sandbox.disk.sockets import bind


class Door:
    """A listening socket at its place in the user's runtime folder."""

    def __init__(self, name: str, environ: Mapping[str, str] | None) -> None:
        self.listener: socket.socket | None = None
        self._name = name
        self._environ = environ
        self._folder: Folder | None = None
        self._identity = (0, 0)

    def open(self) -> None:
        """Listen there, in the place of whatever has that name."""
        self.close()
        self._folder = open_runtime(self._environ)
        try:
            self.listener = self._bind(self._folder)
        except BaseException:
            self.close()
            raise

    def is_lost(self) -> bool:
        """Say whether others cannot find it any more."""
        if self._folder is None:
            return True
        try:
            # By the path, as others do: the descriptor of a folder that was unmounted still shows its names.
            found = os.lstat(f"{self._folder.path}/{self._name}")
        except OSError:
            return True
        return (found.st_dev, found.st_ino) != self._identity

    def remove(self) -> None:
        """Take the name away: nobody else comes."""
        if self._folder is not None:
            with suppress(OSError):
                self._folder.remove(self._name)

    def close(self) -> None:
        """Take it away altogether."""
        self.remove()
        if self.listener is not None:
            self.listener.close()
        if self._folder is not None:
            self._folder.close()
        self.listener = self._folder = None

    def _bind(self, folder: Folder) -> socket.socket:
        with ExitStack() as undo:
            listener = undo.enter_context(bind(folder, self._name))
            listener.setblocking(False)
            found = os.stat(self._name, dir_fd=folder.fd, follow_symlinks=False)
            self._identity = (found.st_dev, found.st_ino)
            undo.pop_all()
        return listener
