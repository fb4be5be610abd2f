"""Documents are held to the code. Run as a program, this prints docs/cli.md."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from commands import PACKAGE_FOLDER

from sage_sandbox.cli.main import VERBS, cli
from sage_sandbox.errors import ExitCode

ROOT = Path(__file__).parents[1]
STARTER = ROOT / "sage_sandbox" / "projectfiles" / "starter"
PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *(ROOT / "docs").glob("*.md"),
        *STARTER.glob("*.md"),
        ROOT / ".sage" / "README.md",
        ROOT / "examples" / "tools" / "README.md",
    ]
)
README = (ROOT / "README.md").read_text(encoding="utf-8")


def cli_page() -> str:
    """docs/cli.md, from the help texts."""
    sections = ["# The command line", "Made from the help texts by `tests/test_docs.py`; edit those."]
    for verb in [(), *_verbs()]:
        args = [*verb, "--help"]
        shown = CliRunner().invoke(cli, args, prog_name="sage-sandbox", terminal_width=100).output.rstrip()
        sections.append(f"## {' '.join(['sage-sandbox', *args[:-1]])}\n\n```text\n{shown}\n```")
    return "\n\n".join(sections) + "\n"


def _verbs() -> list[tuple[str, ...]]:
    """Every verb, and the verbs of those that have some."""
    found: list[tuple[str, ...]] = []
    for name in VERBS:
        command = cli.get_command(click.Context(cli), name)
        found += [(name,), *((name, below) for below in getattr(command, "commands", ()))]
    return found


def test_the_cli_page_says_what_help_says():
    """Words, not layout: click breaks lines differently from version to version."""
    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    # In a process of its own: click keeps the help option of a command as the first caller had it.
    env = {**os.environ, "PYTHONPATH": os.pathsep.join((PACKAGE_FOLDER, str(Path(__file__).parent)))}
    made = subprocess.run([sys.executable, "-P", __file__], env=env, capture_output=True, text=True, check=True).stdout

    assert made.split() == page.split(), "run: python tests/test_docs.py > docs/cli.md"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_relative_links_lead_somewhere(page):
    targets = re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8"))
    dead = [target for target in targets if "://" not in target and not (page.parent / target).exists()]

    assert [] == dead


def test_the_readme_has_two_commands_and_ci_runs_them():
    block = re.search(r"<!-- commands -->\n```sh\n(.*?)```\n<!-- /commands -->", README, re.DOTALL)
    assert block is not None
    commands = block[1].splitlines()

    assert len(commands) == 2
    assert commands[0].endswith("sage-sandbox demo")
    assert commands[1].endswith("tox")
    assert "<!-- commands -->" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_the_exit_codes_of_the_design_page_are_those_of_the_code():
    page = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    table = {int(code) for code in re.findall(r"^\| (\d+) \|", page, re.MULTILINE)}

    assert {code.value for code in ExitCode} - {ExitCode.LIMIT} == table


def test_the_python_of_the_readme_compiles_and_uses_public_names():
    import sage_sandbox as sage

    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)

    assert blocks
    for block in blocks:
        compile(block, "README.md", "exec")
        assert set(re.findall(r"\bsage\.(\w+)", block)) <= set(sage.__all__)


def test_the_templates_of_the_readme_are_valid(tmp_path):
    import sage_sandbox as sage

    names = []
    for block in re.findall(r"```yaml\n(name: .*?)```", README, re.DOTALL):
        (tmp_path / "t.yaml").write_text(block, encoding="utf-8")
        names.append(sage.load(tmp_path / "t.yaml").name)

    assert {"tide-report", "line-count", "news"} <= set(names)


@pytest.mark.parametrize(
    "template",
    sorted([*(ROOT / ".sage" / "templates").glob("*.yaml"), *(ROOT / "examples" / "tools").glob("*.yaml")]),
    ids=lambda path: path.name,
)
def test_the_example_templates_are_valid(template):
    import sage_sandbox as sage

    assert sage.load(template).name == template.stem


def test_no_page_names_a_folder_of_somebodys_machine():
    folders = re.compile(r"/(opt|root|home/(?!you\b))[\w/]")

    assert [] == [page.name for page in PAGES if folders.search(page.read_text(encoding="utf-8"))]


def test_documented_verbs_exist():
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    used = set(re.findall(r"sage-sandbox (?!-)([a-z]+)\b", text))
    words = {"on", "itself", "runs", "is", "keeps", "run", "workflow", "workflows", "installed"}

    assert used - words <= set(VERBS)


if __name__ == "__main__":
    sys.stdout.write(cli_page())
