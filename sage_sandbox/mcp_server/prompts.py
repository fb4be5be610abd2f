"""Ready questions, for people who pick them from a menu; and what their arguments can be completed to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, cast

from mcp.types import Completion, CompletionArgument, CompletionContext, PromptReference, ResourceTemplateReference

from sage_sandbox.errors import SageError
from sage_sandbox.mcp_server.following import in_thread

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mcp.server.mcpserver import MCPServer

    from sage_sandbox.mcp_server.runs import Runs

VALUES_MOST: Final = 100
"""The most values of a completion (specification, "Completion")."""

_RUN: Final = """\
Run the template `{template}` as `{feature}` with sage_workflow_execute. If it is still running when the call returns, \
wait with sage_workflow_status(feature="{feature}", wait_s=60) until it has ended. Then say in a few sentences what it \
found, from the results; open the linked resources only for what you need. If it is refused with NOT_GRANTED, show me \
the command from the hint and stop: only I can allow it."""

_DEBUG: Final = """\
Find out why the run `{feature}` is not completed.
1. sage_workflow_status(feature="{feature}"): which phases failed, and for what reason.
2. Read sage://runs/{feature} (results, errors, the end of stderr) and sage://runs/{feature}/log.
3. Say what went wrong and where, in the template or in what it reads. `denied` means that the sandbox refused \
something the template did not ask for; `limit` that it needed more memory, time or disk; `unavailable` that a service \
was down.
4. Propose the smallest change. Where a file or a service was at fault, sage_workflow_resume(feature="{feature}") then \
repeats only what is not done. It goes on with the template as it was stored: where that has to change, I take the new \
one with: sage-sandbox resume {feature} --update"""

_AUTHOR: Final = """\
Write a workflow template for this: {goal}

A template is YAML, saved as .sage/templates/NAME.yaml:

name: repo-report
phases:
  - id: survey                # a-z, 0-9 and -
    name: Survey
    operations:               # a list runs in parallel; a single mapping is one operation
      - id: languages
        type: python
        code: |
          def run(params, inputs, tools):
              return {{"files": 12}}      # JSON
        policy: {{read: ["."]}}           # ask for what it needs and nothing else
      - id: history
        type: command
        argv: [git, log, --oneline, -n, "50"]
        output: lines
        policy: {{read: [".git"]}}
  - id: digest
    name: Digest
    dependencies: [survey]    # inputs["survey"]["languages"], or ${{survey.languages.files}} in params
    operations: {{type: python, code: "def run(inputs): return inputs['survey']"}}

Without a policy an operation has no file of the project, no network and no environment. A policy may ask for read, \
write (lists of paths beneath the project), net (HOST:PORT), tool (server/tool) and env (names). Python has the \
standard library, and what `packages: [name]` lists. Return little: 2,000 bytes of each result are handed back.

Make independent operations one parallel phase. Check with sage_workflow_validate until it is valid, save it, and tell \
me what it asks for and why: I have to allow that before it runs."""


def add_prompts(server: MCPServer[Any], runs: Runs) -> None:
    """Give a server its prompts, and completion for names."""

    @server.prompt(title="Run a workflow")
    def run_workflow(feature: str, template: str = "feature") -> str:
        """Run a template and say what it found."""
        return _RUN.format(feature=feature, template=template)

    @server.prompt(title="Find out why a run failed")
    def debug_run(feature: str) -> str:
        """Find out why a run is not completed, and how to go on."""
        return _DEBUG.format(feature=feature)

    @server.prompt(title="Write a workflow")
    def author_workflow(goal: str) -> str:
        """Write a template for something, with no more rights than it needs."""
        return _AUTHOR.format(goal=goal)

    async def complete(
        _: PromptReference | ResourceTemplateReference,
        argument: CompletionArgument,
        context: CompletionContext | None,
    ) -> Completion | None:
        try:
            names = await in_thread(_names, runs, argument.name, (context and context.arguments) or {})
        except (SageError, OSError):
            return None  # nothing to offer is no error of whoever types
        found = [name for name in names if name.startswith(argument.value)]
        return Completion(values=found[:VALUES_MOST], total=len(found), has_more=len(found) > VALUES_MOST)

    cast("Any", server).completion()(complete)  # the SDK has no types for it


def _names(runs: Runs, argument: str, others: dict[str, str]) -> Iterable[str]:
    """What an argument of this name can be, whichever prompt or resource has it."""
    match argument:
        case "feature":
            return runs.features()
        case "template":
            return runs.templates()
        case "path" if "feature" in others:
            return runs.artifacts(others["feature"])
    return ()
