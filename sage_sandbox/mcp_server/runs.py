"""The runs of one project, as a client may have them: names and mappings in, records of the library out.

Every method blocks and raises what the library raises, so each is called in a thread. Nothing that a client says names
a path, widens a grant or reaches another project.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sage_sandbox import api, detached, handing, handover, history
from sage_sandbox.api import How
from sage_sandbox.control import asking
from sage_sandbox.errors import UsageError
from sage_sandbox.mcp_server.shapes import Options
from sage_sandbox.policy import parse_grant

if TYPE_CHECKING:
    from sage_sandbox.workflow.loading import Report


ENDED_MOST: Final = 1000
"""Of how many runs that have ended it is remembered how."""


class Runs:
    """The runs of ``project``; keys, and the values of granted names, are read in ``environ``."""

    def __init__(self, project: Path, environ: Mapping[str, str]) -> None:
        self.project = project
        self.environ = environ
        self._ended: dict[str, tuple[history.Version, history.Standing]] = {}

    def execute(self, feature: str, template: str, options: Options) -> None:
        """Have a run begin in a process of its own; it is there, and durable, when this returns."""
        api.check_feature(feature)
        path = api.named_template(template, self.project)
        detached.launch(handover.run_request(path, feature, self._how(options)), environ=self.environ)

    def resume(self, feature: str, from_phase: str | None) -> str:
        """Have a run go on in a process of its own; the first phase that runs again, empty if none has to."""
        api.check_feature(feature)
        request = handover.resume_request(feature, self._how(Options()), from_phase=from_phase)
        with self._history() as runs:
            at = from_phase or handing.resumes_at(runs, feature)
        detached.launch(request, environ=self.environ)
        return at

    def standing(self, feature: str) -> history.Standing:
        """How a run stands."""
        api.check_feature(feature)
        before = history.version_of(self.project, feature)
        with self._history() as runs:
            found = runs.of(feature)
        if before is not None and before == history.version_of(self.project, feature):
            self._remember(found, before)
        return found

    def ended(self, feature: str) -> history.Standing | None:
        """How a run stands that has ended, if it was looked at since: the one method that does not block."""
        api.check_feature(feature)
        version, standing = self._ended.get(feature, (None, None))
        return standing if version is not None and version == history.version_of(self.project, feature) else None

    def _remember(self, standing: history.Standing, version: history.Version) -> None:
        if standing.status == "running" or standing.interrupted or standing.trouble:
            self._ended.pop(standing.feature, None)
            return
        if len(self._ended) >= ENDED_MOST:
            self._ended.clear()
        self._ended[standing.feature] = (version, standing)

    def standings(self, status: str | None) -> list[history.Standing]:
        """How all stand, or those of one status; what cannot be read is among them in either case."""
        with self._history() as runs:
            return [one for one in runs.all() if status is None or one.status in (status, "unreadable")]

    def left(self, feature: str) -> tuple[handing.PhaseLeft, ...]:
        """What the phases that ended hand over."""
        api.check_feature(feature)
        with self._history() as runs:
            return handing.phases_left(runs, feature)

    def wait(self, feature: str, timeout_s: float) -> bool:
        """Whether it has ended, asked for as long as this at most."""
        return history.wait_for(self.project, feature, self.environ, timeout_s=timeout_s)

    def cancel(self, feature: str, *, save: bool) -> asking.Cancelled:
        """End a run, and wait until it has ended. NoSuchRun, NotRunning, NotAnswering."""
        api.check_feature(feature)
        try:
            return asking.cancel(self.project, feature, save=save, environ=self.environ)
        except asking.NotRunning as error:
            status = self.standing(feature).status
            hint = "try again: it does not listen yet, or any more" if status == "running" else ""
            raise asking.NotRunning(f"{error.message} (its status is {status})", hint) from error

    def inspect(self, template: str | Mapping[str, Any]) -> Report:
        """Everything that is wrong with a template, or with a definition."""
        return api.inspect_template(template, self.project)

    def log(self, feature: str) -> list[str]:
        """The last lines that are logged of a run."""
        api.check_feature(feature)
        return handing.log_lines(self.project, feature)

    def artifacts(self, feature: str) -> list[str]:
        """The paths of the files that a run left."""
        return [file.path for file in self._files(feature)]

    def artifact(self, feature: str, path: str, most: int) -> tuple[handing.File, str | None]:
        """One of them, and the beginning of its text. FileNotFoundError for what the run did not leave."""
        file = next((file for file in self._files(feature) if file.path == path), None)
        if file is None:
            raise FileNotFoundError(errno.ENOENT, f"{feature} left no such file", path)
        return file, handing.file_text(self.project, feature, file, most, self.environ)

    def features(self) -> list[str]:
        """The features that have left anything."""
        with self._history() as runs:
            return runs.features()

    def templates(self) -> list[str]:
        """The names of the templates there are."""
        return api.template_names(self.project)

    def _files(self, feature: str) -> list[handing.File]:
        api.check_feature(feature)
        with self._history() as runs:
            return list(handing.files_left(runs, feature))

    def _history(self) -> history.History:
        return history.History(self.project, self.environ)

    def _how(self, options: Options) -> How:
        if any(text.startswith(("read!", "write!")) for text in options.allow or ()):
            raise UsageError("a grant with ! is your user's to give, for one run, on a terminal", "leave it out")
        return How(
            project=self.project,
            within=None if options.allow is None else tuple(parse_grant(text) for text in options.allow),
            sequential=not options.parallel,
            timeout_s=None if options.timeout is None else options.timeout / 1000,
            cache=options.caching,
            environ=self.environ,
        )
