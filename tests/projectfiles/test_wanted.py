"""The files that a project gets are valid where somebody says what that is."""

from __future__ import annotations

import json
import re

import click
import jsonschema
import pytest
import skills_ref
import yaml

import sage_sandbox as sage
from sage_sandbox.cli.main import VERBS, cli
from sage_sandbox.projectfiles.changes import look, write
from sage_sandbox.projectfiles.wanted import COMMAND, SCHEMA, SKILL, TEMPLATES, wanted
from sage_sandbox.toolservers.reading import parse_config, read_catalog
from sage_sandbox.workflow.model import schema

TOOLS = {f"sage_workflow_{verb}" for verb in ("execute", "resume", "list", "status", "cancel", "validate")}


@pytest.fixture
def project(tmp_path):
    write(tmp_path, look(tmp_path, wanted()))
    return tmp_path


def test_the_skill_is_valid_by_the_reference_validator(project):
    assert [] == skills_ref.validate((project / SKILL).parent)
    assert skills_ref.read_properties((project / SKILL).parent).name == "sage-workflow"


def test_the_skill_is_short_enough_to_be_loaded_whole(project):
    """Under 500 lines and 5,000 tokens (agentskills.io, "Specification", progressive disclosure)."""
    text = (project / SKILL).read_text(encoding="utf-8")

    assert text.count("\n") < 100
    assert len(text) < 5000


def test_the_command_says_what_it_takes(project):
    _, head, body = (project / COMMAND).read_text(encoding="utf-8").split("---\n", 2)
    about = yaml.safe_load(head)

    assert {"description", "argument-hint"} == about.keys()
    assert "$ARGUMENTS" in body
    for word in ("--resume", "--template", "--list", "status", "cancel"):
        assert word in about["argument-hint"]


@pytest.mark.parametrize("path", [COMMAND, SKILL])
def test_what_agents_are_told_exists(project, path):
    text = (project / path).read_text(encoding="utf-8")
    commands = re.findall(r"`sage-sandbox ([a-z]+) [^`]*--json`", text)

    assert set(re.findall(r"sage_workflow_[a-z]+", text)) == TOOLS
    assert {"run", "resume", "list", "status", "cancel", "validate"} == set(commands) <= set(VERBS)
    for verb in commands:
        command = cli.get_command(click.Context(cli), verb)
        assert command is not None
        assert "as_json" in {param.name for param in command.params}


@pytest.mark.parametrize("name", TEMPLATES)
def test_templates_are_valid_and_lead_editors_to_their_schema(project, name):
    path = project / ".sage" / "templates" / name
    text = path.read_text(encoding="utf-8")
    modeline = re.match(r"# yaml-language-server: \$schema=(\S+)\n", text)
    assert modeline is not None

    assert (project / SCHEMA).resolve() == (path.parent / modeline[1]).resolve()
    assert sage.load(path).name == path.stem
    jsonschema.validate(yaml.safe_load(text), json.loads((project / SCHEMA).read_text(encoding="utf-8")))


def test_the_schema_is_that_of_the_format(project):
    assert schema() == json.loads((project / SCHEMA).read_text(encoding="utf-8"))


def test_the_example_in_the_configuration_is_a_server(project):
    text = (project / ".sage" / "config.toml").read_text(encoding="utf-8")
    example = text[text.index("# [servers") :].replace("# ", "", 1).replace("\n# ", "\n")
    catalog = parse_config(example.encode())

    assert ((), ("time",)) == (catalog.problems, tuple(catalog.servers))
    assert (2, 5.0) == (catalog.servers["time"].at_once, catalog.servers["time"].per_second)
    assert {} == parse_config(text.encode()).servers


def test_the_entry_is_a_server_that_others_read(project):
    server = read_catalog(project).find("sage-sandbox")

    assert ("sage-sandbox", ("serve",)) == (server.command, server.args)
