"""Valid templates: what each part becomes, in each of the three formats."""

from __future__ import annotations

import gc
import json
import os
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st

from sage_sandbox.errors import DefinitionError, UsageError
from sage_sandbox.policy import Limits, Policy
from sage_sandbox.workflow.definition import AskedLimits, Keep, Parameter, SourceFile
from sage_sandbox.workflow.loading import inspect, inspect_text, load, load_text
from sage_sandbox.workflow.pausing import collector_paused

FULL = """\
name: repo-report
description: what this repository is made of
timeout: 10m
parameters:
  top: {type: integer, default: 10}
  who: {type: string, description: d}
  any: {type: array, required: false}
phases:
  - id: survey
    name: Survey
    timeout: 90s
    operations:
      - id: languages
        type: python
        code: |
          def run(params, inputs, tools):
              return {"files": 12}
        params: {top: "${params.top}", feature: "${feature}"}
        policy: {read: ["."], write: [a], write_through: [b], net: ["h:1"], loopback: true, tool: [s/t], env: [CI]}
        limits: {memory: 512M, cpu: 2m, pids: 9, disk: 1048576}
        packages: [numpy]
        timeout: 1500
        retries: 2
        cache: false
        keep: {fields: [summary], max_items: 3, max_bytes: 2000}
      - type: command
        argv: [git, log, "-n${params.top}"]
        output: lines
        ok_codes: [0, 1]
    success_threshold: 1
  - id: digest
    name: Digest
    dependencies: [survey]
    operations: {type: command, argv: [echo], params: ["${survey.languages.files}", "${survey.op-2}", "${survey}"]}
  - id: last
    name: Last
    dependencies: [digest]
    operations: {type: command, argv: [echo, "${digest.any.thing}"]}
"""


def one(operation, more=""):
    return f"name: n\n{more}phases:\n- id: a\n  name: A\n  operations:\n    {operation}\n"


def params_of(text):
    return load_text(one(f"{{type: command, argv: [a], params: {text}}}"), "yaml").phases[0].operations[0].params


def test_every_field_arrives():
    workflow = load_text(FULL, "yaml", "t.yaml")

    survey, digest, _ = workflow.phases
    languages, history = survey.operations
    assert ("repo-report", "what this repository is made of", 600.0) == (
        workflow.name,
        workflow.description,
        workflow.timeout_s,
    )
    assert {
        "top": Parameter("integer", 10, required=False),
        "who": Parameter("string", description="d"),
        "any": Parameter("array", required=False),
    } == workflow.parameters
    assert ("t.yaml", 64) == (workflow.source, len(workflow.digest))
    assert ("survey", "Survey", (), 90.0, 1.0, False) == (
        survey.id, survey.name, survey.dependencies, survey.timeout_s, survey.success_threshold, survey.single,
    )  # fmt: skip
    assert ("languages", "python", {"top": "${params.top}", "feature": "${feature}"}) == (
        languages.id,
        languages.type,
        languages.params,
    )
    assert 'def run(params, inputs, tools):\n    return {"files": 12}\n' == languages.code
    assert Policy((".",), ("a",), ("b",), ("h:1",), True, ("s/t",), ("CI",)) == languages.policy
    assert AskedLimits(512 << 20, 120.0, 9, 1 << 20) == languages.limits
    assert (("numpy",), 1.5, 2, False) == (languages.packages, languages.timeout_s, languages.retries, languages.cache)
    assert (Keep(("summary",), 3, 2000), 13) == (languages.keep, languages.line)
    assert ("op-2", "command", ("git", "log", "-n${params.top}"), "lines", (0, 1)) == (
        history.id, history.type, history.argv, history.output, history.ok_codes,
    )  # fmt: skip
    assert (("survey",), True, 0.75, Limits().timeout_s) == (
        digest.dependencies, digest.single, digest.success_threshold, digest.timeout_s,
    )  # fmt: skip


def test_three_formats_make_the_same_workflow():
    data = json.loads(json.dumps(_plain(FULL)))

    made = [load_text(FULL, "yaml"), load_text(json.dumps(data), "json"), load_text(tomli_w.dumps(data), "toml")]

    bare = [replace(workflow, digest="", template=None, phases=_unplaced(workflow)) for workflow in made]
    same = [json.dumps(asdict(workflow)) for workflow in bare]
    assert same[0] == same[1] == same[2]
    assert 3 == len({workflow.digest for workflow in made})


def _plain(text):
    from sage_sandbox.workflow.findings import Findings
    from sage_sandbox.workflow.strict_yaml import read_yaml

    return read_yaml(text, "", Findings())[0]


def _unplaced(workflow):
    return tuple(
        replace(phase, operations=tuple(replace(operation, line=0) for operation in phase.operations))
        for phase in workflow.phases
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("yes", "yes"), ("No", "No"), ("on", "on"), ("y", "y"), ("1:30", "1:30"), ("2020-01-01", "2020-01-01"),
        ("0777", 777), ("0o17", 15), ("0x1F", 31), ("-5", -5), ("+5", 5), ("1_000", "1_000"), ("1e3", 1000.0),
        (".5", 0.5), ("-1.5e-3", -0.0015), ("true", True), ("FALSE", False), ("tRue", "tRue"), ("null", None),
        ("~", None),
        ("'12'", "12"), ('"true"', "true"), ("0b11", "0b11"), ("=", "="), ("!!str 12", "12"), ('!!int "12"', 12),
        ("!!float 1", 1.0), ("!!bool 'true'", True), ("!!null ''", None), ("!!seq [a]", ["a"]),
        ("!!map {a: b}", {"a": "b"}),
        ("! 12", 12), ("'<<'", "<<"), ("{'<<': 1}", {"<<": 1}), ("[a, [b]]", ["a", ["b"]]),
        ("[&x {k: v}, *x, *x]", [{"k": "v"}] * 3), ("&x é", "é"), ("", None),
    ],
)  # fmt: skip
def test_yaml_scalars_follow_the_1_2_core_schema(text, expected):
    value = params_of(text)

    assert (expected, type(expected)) == (value, type(value))


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers(-(2**63), 2**63)
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_json_params_arrive_as_they_are(value):
    text = json.dumps({"type": "command", "argv": ["a"], "params": value}).replace("${", "$ {")
    template = f'{{"name": "n", "phases": [{{"id": "a", "name": "A", "operations": {text}}}]}}'

    assert json.loads(text)["params"] == load_text(template, "json").phases[0].operations[0].params


def test_aliases_that_expand_to_too_much_are_one_problem():
    levels = "".join(f"    {chr(98 + n)}: &{chr(98 + n)} [{', '.join([f'*{chr(97 + n)}'] * 9)}]\n" for n in range(20))
    report = inspect_text(
        one("type: command\n    argv: [a]\n    params:\n      x: &a [1, 2, 3]\n" + levels.replace("    ", "      ")),
        "yaml",
    )

    assert ["the aliases expand to too much"] == [problem.message for problem in report.problems]


def test_byte_order_mark_is_no_part_of_the_text():
    assert "n" == load_text(b"\xef\xbb\xbf" + one("{type: command, argv: [a]}").encode(), "yaml").name


def test_disconnected_phases_are_valid():
    text = "name: n\nphases:\n" + "".join(
        f"- {{id: p{n}, name: P, operations: {{type: command, argv: [a]}}}}\n" for n in range(3)
    )

    assert ({"nodes": 3, "edges": 0, "depth": 1}, ()) == (
        inspect_text(text, "yaml").graph,
        inspect_text(text, "yaml").problems,
    )


def test_100_000_phases_are_loaded():
    phases = [
        {
            "id": f"p{n}",
            "name": "P",
            "dependencies": [f"p{n - 1}"] if n else [],
            "operations": {"type": "command", "argv": ["a"]},
        }
        for n in range(100_000)
    ]

    report = inspect_text(json.dumps({"name": "n", "phases": phases}), "json")

    assert {"nodes": 100_000, "edges": 99_999, "depth": 100_000} == report.graph
    assert report.workflow


def test_problems_beyond_the_first_hundred_are_counted():
    report = inspect_text(json.dumps({"name": "n", "phases": [1] * 150 + [{}] * 10}), "json")

    assert 101 == len(report.problems)
    assert "and 80 more problems" == report.problems[-1].message


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("json", json.dumps({"name": "n", "phases": [1] * 1_000_000})),
        ("json", '{"a": [' + '{"x": 1, "x": 1},' * 20_000 + "1]}"),
        ("yaml", "a:\n" + "- !x\n" * 20_000),
    ],
)
def test_looking_ends_when_enough_is_wrong(kind, text):
    report = inspect_text(text, kind)

    assert "and more than 10,000 more problems" == report.problems[-1].message
    assert report.workflow is None


def test_problems_come_in_the_order_of_the_file():
    report = inspect_text("zz: 1\nname: 2\nphases: 3\nyy: 4\n", "yaml")

    assert [1, 2, 3, 4] == [problem.line for problem in report.problems]


def test_a_problem_reads_as_place_field_message():
    with pytest.raises(DefinitionError) as caught:
        load_text("name: 1\nphases: []\n", "yaml", "t.yaml")

    assert [
        "t.yaml:1:7: name: must be text, not the number 1: put it in quotes",
        "t.yaml:2:9: phases: must not be empty",
    ] == [str(problem) for problem in caught.value.problems]
    assert "t.yaml is not a valid workflow (2 problems)" == caught.value.message


def test_one_problem_is_counted_as_one():
    with pytest.raises(DefinitionError, match=r"\(1 problem\)"):
        load_text("", "yaml")


@pytest.mark.parametrize(
    ("template", "line", "said"),
    [
        (one("{type: command, argv: [sh, -c, 'echo ${feature}']}"), 6, "the value becomes part of a script"),
        (one("{type: command, argv: [a]}").replace("id: a", "id: feature"), 3, "never means this phase"),
    ],
)
def test_doubtful_things_are_warnings(template, line, said):
    report = inspect_text(template, "yaml")

    assert report.workflow
    assert [("warning", line)] == [(problem.severity, problem.line) for problem in report.problems]
    assert said in report.problems[0].message


@pytest.mark.parametrize(
    "argv", ["[sh, -c, 'echo \"$1\"', x, '${feature}']", "[git, -c, '${feature}']", "[sh, -c, 'a $${x}']"]
)
def test_harmless_arguments_are_no_warning(argv):
    assert () == inspect_text(one(f"{{type: command, argv: {argv}}}"), "yaml").problems


def test_dollar_braces_in_code_are_just_code():
    workflow = load_text(one("type: python\n    code: 'def run(): return \"${x}\"'"), "yaml")

    assert 'def run(): return "${x}"' == workflow.phases[0].operations[0].code


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ("${first.x}", "'first' is no direct dependency: add it to the dependencies of this phase"),
        ("${mid.op1}", "phase 'mid' has no operation 'op1', did you mean 'op-1'?"),
        ("${mdi}", "there is no 'mdi' here, did you mean 'mid'?"),
        ("${params.tpo}", "there is no parameter 'tpo', did you mean 'top'?"),
        ("${params.top.x}", "nothing lies below a parameter of type integer"),
    ],
)
def test_reference_that_leads_nowhere_is_found_before_anything_runs(reference, said):
    report = inspect_text(
        "name: n\nparameters: {top: {type: integer}}\nphases:\n"
        "- {id: first, name: F, operations: {type: command, argv: [a]}}\n"
        "- {id: mid, name: M, dependencies: [first], operations: [{type: command, argv: [a]}]}\n"
        "- {id: last, name: L, dependencies: [mid],"
        f" operations: {{type: command, argv: [a], params: ['{reference}']}}}}\n",
        "yaml",
    )

    (problem,) = report.problems
    assert said in problem.message
    assert (6, "phases[2].operations.params[0]") == (problem.line, problem.field)


@pytest.mark.parametrize(
    "reference", ["${params}", "${params.list.0.x}", "${mid}", "${mid.op-1.x}", "${single.any}", "${feature}"]
)
def test_reference_that_can_lead_somewhere_is_accepted(reference):
    load_text(
        "name: n\nparameters: {list: {type: array}}\nphases:\n"
        "- {id: mid, name: M, operations: [{type: command, argv: [a]}]}\n"
        "- {id: single, name: S, operations: {type: command, argv: [a]}}\n"
        "- {id: last, name: L, dependencies: [mid, single],"
        f" operations: {{type: command, argv: [a, 'x{reference}']}}}}\n",
        "yaml",
    )


def test_everything_wrong_is_reported_at_once():
    report = inspect_text(
        "nmae: x\nphases:\n"
        "- {id: a, name: A, dependencies: [b], operations: {type: command, argv: [a], params: '${zz}'}}\n"
        "- {id: b, name: B, dependencies: [a, q],"
        " operations: [{type: pyton}, {type: command, argv: [a], params: '${params.x}'}, 3]}\n"
        "- {id: c, name: C, dependencies: [c], operations: {type: command, argv: 3, params: '${a.op}'}}\n"
        "- {id: c, name: C, operations: {type: python, code: 'def'}}\n"
        "- 5\n",
        "yaml",
    )

    said = "\n".join(map(str, report.problems))
    for expected in (
        "name: is required", "nmae: unknown field", "a → b → a", "there is no 'zz'", "there is no phase 'q'", "'pyton'",
        "operations[2]: must be a mapping", "c → c", "argv: must be a list", "'a' is no direct dependency",
        "already that of phases[2]", "not Python", "phases[4]: must be a mapping",
    ):  # fmt: skip
        assert expected in said


# ── files ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def folder(tmp_path):
    """A folder with a template that needs main.py and lib/helper.py."""
    (tmp_path / "t.yaml").write_text(one("{type: python, file: main.py, files: [lib/helper.py]}"))
    (tmp_path / "main.py").write_text("from lib import helper\ndef run(): return 1\n")
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "helper.py").write_text("x = 1\n")
    return tmp_path


def messages(folder):
    return [problem.message for problem in inspect(folder / "t.yaml").problems]


def test_files_are_read_once_and_kept(folder):
    operation = load(folder / "t.yaml").phases[0].operations[0]

    assert ("main.py", "from lib import helper\ndef run(): return 1\n") == (operation.file, operation.code)
    assert (SourceFile("lib/helper.py", "x = 1\n"),) == operation.files


@pytest.mark.parametrize("name", ["t.yaml", "main.py", "lib/helper.py"])
def test_digest_changes_with_every_file(name, folder):
    before = load(str(folder / "t.yaml")).digest

    (folder / name).write_text((folder / name).read_text() + "# changed\n")

    assert before != load(folder / "t.yaml").digest


def test_digest_is_the_same_for_the_same_bytes(folder):
    assert load(folder / "t.yaml").digest == load(folder / "t.yaml").digest


def test_a_file_that_two_operations_use_is_read_once(folder):
    operation = "{type: python, file: main.py}"
    (folder / "t.yaml").write_text(one(f"[{operation}, {operation}]"))

    assert 1 == len({operation.code for operation in load(folder / "t.yaml").phases[0].operations})


def test_syntax_error_in_a_file_is_shown_there(folder):
    (folder / "main.py").write_text("def run():\n  return (\n")

    (problem,) = inspect(folder / "t.yaml").problems
    assert str(problem).startswith(f"{folder / 'main.py'}:2:10: phases[0].operations.file: not Python")


def test_syntax_error_in_a_helper_is_shown_there(folder):
    (folder / "lib/helper.py").write_text("x = = 1\n")

    (problem,) = inspect(folder / "t.yaml").problems
    assert str(problem).startswith(f"{folder / 'lib/helper.py'}:1:5: phases[0].operations.files[0]: not Python")


def test_file_without_run_is_named(folder):
    (folder / "main.py").write_text("x = 1\n")

    assert ["'main.py' no function named run: define run(params, inputs, tools)"] == messages(folder)


def test_link_in_place_of_a_file_is_refused(folder):
    (folder / "main.py").rename(folder / "real.py")
    (folder / "main.py").symlink_to("real.py")

    assert ["'main.py' is or goes through a link or something that is no folder"] == messages(folder)


def test_link_on_the_way_to_a_file_is_refused(folder):
    (folder / "lib").rename(folder / "real")
    (folder / "lib").symlink_to("real")

    assert ["'lib/helper.py' is or goes through a link or something that is no folder"] == messages(folder)


def test_fifo_in_place_of_a_file_is_refused_without_waiting(folder):
    (folder / "main.py").unlink()
    os.mkfifo(folder / "main.py")

    assert ["'main.py' is not a regular file"] == messages(folder)


def test_folder_in_place_of_a_file_is_refused(folder):
    (folder / "main.py").unlink()
    (folder / "main.py").mkdir()

    assert ["'main.py' is not a regular file"] == messages(folder)


def test_socket_in_place_of_a_file_is_refused(folder, monkeypatch):
    import socket

    (folder / "main.py").unlink()
    monkeypatch.chdir(folder)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("main.py")

        assert ["'main.py' cannot be read: no such device or address"] == messages(folder)


def test_large_file_is_refused(folder):
    (folder / "main.py").write_text("#" * ((1 << 20) + 1))

    assert ["'main.py' is larger than 1 MiB"] == messages(folder)


def test_large_code_is_refused():
    text = json.dumps(
        {
            "name": "n",
            "phases": [{"id": "a", "name": "A", "operations": {"type": "python", "code": "#" * ((1 << 20) + 1)}}],
        }
    )

    assert ["is larger than 1 MiB"] == [problem.message for problem in inspect_text(text, "json").problems]


def test_many_large_files_are_refused(folder):
    names = [f"f{number}.py" for number in range(33)]
    for name in names:
        (folder / name).write_text("#" * (1 << 20))
    (folder / "t.yaml").write_text(one(f"{{type: python, code: 'def run(): 1', files: [{', '.join(names)}]}}"))

    assert ["'f32.py' the files of the template are larger than 32 MiB together"] == messages(folder)


def test_file_that_is_not_utf_8_is_refused(folder):
    (folder / "main.py").write_bytes(b"# \xe4\n")

    assert ["'main.py' is not UTF-8"] == messages(folder)


def test_file_with_a_nul_is_refused(folder):
    (folder / "main.py").write_bytes(b"x = 1\0\n")

    assert ["'main.py' not Python: it holds a NUL character or something else that source text cannot"] == messages(
        folder
    )


def test_file_listed_twice_is_refused(folder):
    (folder / "t.yaml").write_text(one("{type: python, file: main.py, files: [main.py, lib/helper.py, lib/helper.py]}"))

    assert ["'main.py' is listed twice", "'lib/helper.py' is listed twice"] == messages(folder)


def test_files_need_a_folder():
    report = inspect_text(one("{type: python, file: main.py}"), "yaml")

    assert ["'main.py' this template has no folder that files could lie in"] == [
        problem.message for problem in report.problems
    ]


def test_folder_that_is_not_there_is_said():
    report = inspect_text(one("{type: python, file: main.py}"), "yaml", base_folder="/nowhere/at/all")

    assert ["'main.py' there is no such file in the template's folder"] == [
        problem.message for problem in report.problems
    ]


def test_no_descriptor_is_left_open(folder):
    before = list(Path("/proc/self/fd").iterdir())
    load(folder / "t.yaml")
    inspect(folder / "t.yaml")
    (folder / "main.py").unlink()
    inspect(folder / "t.yaml")

    assert len(before) == len(list(Path("/proc/self/fd").iterdir()))


# ── the template itself ──────────────────────────────────────────────────────────────────────────────────────────────


def test_template_may_be_a_link_that_the_user_typed(folder):
    (folder / "link.yaml").symlink_to("t.yaml")

    assert "n" == load(folder / "link.yaml").name


def test_template_that_is_a_fifo_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "t.yaml")

    with pytest.raises(DefinitionError) as caught:
        load(tmp_path / "t.yaml")

    assert ["is not a regular file"] == [problem.message for problem in caught.value.problems]


@pytest.mark.parametrize(
    ("name", "said"),
    [("t.txt", "is no template"), ("t", "is no template"), ("no.yaml", "no such file"), ("a\0.yaml", "not a path")],
)
def test_template_that_cannot_be_opened_is_a_usage_error(name, said, tmp_path):
    with pytest.raises(UsageError) as caught:
        load(tmp_path / name)

    assert said in caught.value.message


def test_text_with_half_a_surrogate_pair_is_refused():
    assert ["not UTF-8"] == [problem.message for problem in inspect_text("name: \ud800", "yaml").problems]


# ── python ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "code",
    [
        "def run(): pass",
        "def run(params, inputs, tools): pass",
        "def run(tools, x=1, *, inputs, y=2, **more): pass",
        "from elsewhere import run",
        "from elsewhere import other as run",
        "from elsewhere import *",
        "run = lambda params: params",
        "run: object = print",
        "if True:\n  def run(): pass",
        "try:\n  import x\nexcept ImportError:\n  def run(): pass",
        "match 1:\n  case 1:\n    def run(): pass",
        "x = 1\ndef other(): pass\nclass C: pass\ndef run(): return '\\d'",
        "class run: pass",
    ],
)
def test_code_with_run_is_accepted(code):
    load_text(
        json.dumps({"name": "n", "phases": [{"id": "a", "name": "A", "operations": {"type": "python", "code": code}}]}),
        "json",
    )


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("def f():\n  def run(): pass", "no function named run"),
        ("class C:\n  def run(self): pass", "no function named run"),
        ("x.run = 1\na, b = 1, 2", "no function named run"),
        ("def run(*, secret): pass", "nothing is passed for 'secret'"),
        ("def run(a, /, params): pass", "nothing is passed for 'a'"),
    ],
)
def test_code_without_a_run_that_can_be_called_is_refused(code, said):
    text = json.dumps(
        {"name": "n", "phases": [{"id": "a", "name": "A", "operations": {"type": "python", "code": code}}]}
    )

    assert said in inspect_text(text, "json").problems[0].message


def test_collector_works_again_after_a_pause():
    with collector_paused():
        assert not gc.isenabled()
        with collector_paused():
            pass
        assert not gc.isenabled()

    assert gc.isenabled()


def test_recursion_limit_is_left_alone():
    before = sys.getrecursionlimit()
    inspect_text("[" * 100_000, "json")

    assert before == sys.getrecursionlimit()


@pytest.mark.parametrize("kind", ["yaml", "json", "toml"])
def test_text_in_memory_is_capped_too(kind):
    (problem,) = inspect_text(b" " * (32 * (1 << 20) + 1), kind).problems

    assert problem.message.startswith("larger than ")


def test_a_mapping_field_of_a_list_has_the_place_of_the_list():
    report = inspect_text("name: n\nphases:\n- {id: a, name: A, operations: {type: command, argv: {a: b}}}\n", "yaml")

    assert [("phases[0].operations.argv", 3)] == [(problem.field, problem.line) for problem in report.problems]
