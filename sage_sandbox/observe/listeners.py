"""Observers of a run, none of whom can stop it."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterable

from sage_sandbox.escaping import clip
from sage_sandbox.events import Event, Observer


class Listeners:
    """Passes events on, one at a time whatever thread they come from.

    An observer that raises hears nothing more, and that is said on stderr.
    """

    def __init__(self, observers: Iterable[Observer]) -> None:
        self._observers = list(observers)
        self._one_at_a_time = threading.RLock()

    def add(self, observer: Observer) -> None:
        """Have one more listen."""
        self._observers.append(observer)

    def __call__(self, event: Event) -> None:
        """Tell every observer."""
        with self._one_at_a_time:
            for observer in tuple(self._observers):
                self._tell(observer, event)

    def _tell(self, observer: Observer, event: Event) -> None:
        try:
            observer(event)
        except Exception as error:  # noqa: BLE001 - whatever an observer does wrong is not the run's business
            self._observers.remove(observer)
            text = f"⚠ an observer failed and was dropped: {type(error).__name__}: {error}"
            sys.stderr.write(clip(text, 200) + "\n")
