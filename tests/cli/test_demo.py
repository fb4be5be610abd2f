"""The demo: bait that is really there outside, a verdict that rests on what the demo itself sees, and the whole."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from commands import PACKAGE_FOLDER, run_cli

from sage_sandbox.cli import demo
from sage_sandbox.cli.main import main
from sage_sandbox.demo import bait as demo_bait
from sage_sandbox.demo.bait import Answer, Bait
from sage_sandbox.document import Metrics, OperationResult, PhaseResult, RunResult
from sage_sandbox.errors import ExitCode
from sage_sandbox.events import RunStatus
from sage_sandbox.outcome import Outcome, rejected

Show = Callable[..., tuple[int, str, str]]

ACTS = ["secret", "home", "neighbour", "tcp", "udp"]


@pytest.fixture
def bait(tmp_path: Path) -> Iterator[Bait]:
    with demo_bait.planted(tmp_path) as planted:
        yield planted


def refused(*acts: str) -> list[Answer]:
    return [Answer(act, False, "ENOENT (FileNotFoundError)") for act in acts]


# --- the bait


def test_every_act_succeeds_outside(bait: Bait) -> None:
    outside = bait.try_outside()
    heard = bait.heard(wait_s=5)

    assert sorted(ACTS) == sorted(answer.act for answer in outside)
    assert {"tcp", "udp"} == heard
    assert dict.fromkeys(ACTS, True) == {answer.act: bait.took(answer, heard) for answer in outside}
    assert {answer.act: answer.answer for answer in outside}["secret"] == "read 32 bytes"


def test_what_was_heard_is_told_once(bait: Bait) -> None:
    bait.try_outside()
    bait.heard(wait_s=5)

    assert bait.heard() == frozenset()


def test_a_bare_connection_is_heard_although_nothing_was_sent(bait: Bait) -> None:
    with socket.create_connection(("127.0.0.1", bait.port)):
        assert bait.heard(wait_s=5) == {"tcp"}


def test_nothing_that_was_planted_is_left(tmp_path: Path) -> None:
    with demo_bait.planted(tmp_path) as bait:
        assert Path(f"/proc/{bait.neighbour}").exists()
        assert bait.secret.exists()

    assert list(tmp_path.iterdir()) == []
    assert not Path(f"/proc/{bait.neighbour}").exists()
    assert (-1, -1) == (bait.tcp.fileno(), bait.udp.fileno())


def test_a_demo_that_fails_takes_its_bait_away_too(tmp_path: Path) -> None:
    def fail() -> None:
        with demo_bait.planted(tmp_path):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()

    assert list(tmp_path.iterdir()) == []


def test_the_secret_is_in_the_file_and_in_the_neighbours_environment_only(bait: Bait) -> None:
    environment = Path(f"/proc/{bait.neighbour}/environ").read_text()

    assert bait.secret.read_text() == bait.token
    assert (0o600, 0o700) == (bait.secret.stat().st_mode & 0o777, bait.folder.stat().st_mode & 0o777)
    assert bait.token in environment
    assert bait.token not in json.dumps(bait.params())


def test_private_keys_are_those_that_can_be_opened(tmp_path: Path) -> None:
    folder = tmp_path / ".ssh"
    folder.mkdir()
    for name in ("id_rsa", "id_rsa.pub", "id_ed25519", "config", "known_hosts"):
        (folder / name).write_text("x")
    (folder / "id_folder").mkdir()

    assert demo_bait.private_keys(tmp_path) == (folder / "id_ed25519", folder / "id_rsa")
    assert demo_bait.private_keys(tmp_path / "nobody") == ()


def test_a_key_is_opened_and_its_text_goes_nowhere(tmp_path: Path) -> None:
    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ssh" / "id_rsa").write_text("PRIVATE")
    with demo_bait.planted(tmp_path) as bait:
        outside = bait.try_outside()

    (key,) = [answer for answer in outside if answer.act == "key 0"]
    assert (key.done, key.answer) == (True, "opened")
    assert "PRIVATE" not in str(outside)


# --- where it is planted


def test_home_is_the_place_if_it_can_be_written(tmp_path: Path) -> None:
    assert demo_bait.place_for_secret(tmp_path) == (tmp_path, "")


def test_a_home_that_is_not_there_is_said_and_another_place_taken(tmp_path: Path) -> None:
    place, why = demo_bait.place_for_secret(tmp_path / "gone")

    assert place != tmp_path / "gone"
    assert "is not writable" in why


@pytest.mark.parametrize("home", ["/usr", "/usr/lib", sys.prefix])
def test_a_home_that_the_sandbox_shows_to_everybody_proves_nothing(home: str) -> None:
    assert demo_bait.is_shown_inside(Path(home).resolve())


def test_an_ordinary_home_is_not_shown_to_everybody(tmp_path: Path) -> None:
    assert not demo_bait.is_shown_inside(tmp_path.resolve())


# --- the verdict


def test_acts_that_succeed_outside_and_are_refused_inside_are_denied(bait: Bait) -> None:
    outside = bait.try_outside()

    acts = demo_bait.compare(bait, outside, refused(*ACTS), bait.heard(wait_s=5), frozenset())

    assert ACTS == [act.name for act in acts]
    assert all(act.succeeded_outside and act.denied_inside for act in acts)
    assert {"ENOENT (FileNotFoundError)"} == {act.inside for act in acts}


@pytest.mark.parametrize("act", ACTS)
def test_an_act_without_an_answer_is_not_counted_as_denied(bait: Bait, act: str) -> None:
    inside = refused(*(name for name in ACTS if name != act))

    acts = demo_bait.compare(bait, [], inside, frozenset(), frozenset())

    assert [act] == [one.name for one in acts if not one.denied_inside]


@pytest.mark.parametrize("act", ACTS)
def test_an_act_that_fails_outside_proves_nothing(bait: Bait, act: str) -> None:
    outside = [answer if answer.act != act else replace(answer, done=False, loot=None) for answer in bait.try_outside()]
    heard = bait.heard(wait_s=5) - {act}

    acts = demo_bait.compare(bait, outside, refused(*ACTS), heard, frozenset())

    assert [act] == [one.name for one in acts if not one.succeeded_outside]


@pytest.mark.parametrize("act", ["tcp", "udp"])
def test_what_the_sockets_heard_outweighs_what_the_operation_claims(bait: Bait, act: str) -> None:
    acts = demo_bait.compare(bait, [], refused(*ACTS), frozenset(), frozenset({act}))

    assert [act] == [one.name for one in acts if not one.denied_inside]


def test_a_token_that_comes_back_is_a_theft_whatever_the_operation_claims(bait: Bait) -> None:
    lies = [Answer(act, False, "EACCES (PermissionError)", bait.token) for act in ("secret", "neighbour")]
    lies += [Answer("home", False, "EACCES (PermissionError)", [bait.folder.name])]

    acts = demo_bait.compare(bait, [], [*lies, *refused("tcp", "udp")], frozenset(), frozenset())

    assert ["secret", "home", "neighbour"] == [one.name for one in acts if not one.denied_inside]


def test_a_folder_that_lists_without_what_was_planted_is_denied_and_says_so(bait: Bait) -> None:
    inside = [Answer("home", True, "1 names", [".pyenv"]), *refused("secret", "neighbour", "tcp", "udp")]

    acts = {act.name: act for act in demo_bait.compare(bait, [], inside, frozenset(), frozenset())}

    assert acts["home"].denied_inside
    assert acts["home"].inside == "1 names, nothing of what was planted"


@pytest.mark.parametrize(
    "result", [None, [], "x", {}, {"acts": None}, {"acts": "x"}, {"acts": [None, 1, []]}, {"acts": {"act": "secret"}}]
)
def test_a_result_of_another_shape_holds_no_answers(result: object) -> None:
    assert demo_bait.answers(result) == []


def test_an_answer_counts_as_done_unless_it_says_no(bait: Bait) -> None:
    (answer,) = demo_bait.answers({"acts": [{"act": "secret", "done": 0, "answer": 5}]})

    assert answer == Answer("secret", True, "5", None)


# --- which project


def test_the_repository_is_looked_for_upwards(tmp_path: Path) -> None:
    (tmp_path / "r" / ".git").mkdir(parents=True)
    (tmp_path / "r" / "a" / "b").mkdir(parents=True)

    assert demo.repository_around(tmp_path / "r" / "a" / "b") == tmp_path / "r"


def test_a_repository_that_holds_home_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".git").mkdir()
    (tmp_path / "home" / "a").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))

    assert demo.repository_around(tmp_path / "home" / "a") is None


def test_what_the_demo_runs_ships_in_the_package() -> None:
    assert demo.REPORT.is_file()
    assert demo.HOSTILE.is_file()
    assert sorted(path.name for path in demo.SAMPLE.iterdir()) == [
        "LICENSE.txt", "README.md", "data", "notes.txt", "requirements.txt", "tide", "web",
    ]  # fmt: skip


def test_no_link_is_in_what_ships() -> None:
    assert [path for path in demo.DEMO.rglob("*") if path.is_symlink()] == []


# --- what is printed, with runs that the test makes up


def outcome(result: object = None, error: str = "") -> Outcome:
    if error:
        return rejected("error", error)
    return Outcome("fulfilled", result=json.dumps(result).encode(), level="full")


def run_of(phases: dict[str, dict[str, Outcome]], status: RunStatus = "completed") -> RunResult:
    done = tuple(
        PhaseResult(name, name, "completed", False, tuple(OperationResult(*one) for one in operations.items()))
        for name, operations in phases.items()
    )
    return RunResult("0", "demo", "demo", status, ExitCode.DONE, done, Metrics())


DIGEST = {"summary": {"languages": "12 lines"}, "report": {}}
REPORTED = run_of({"survey": {"languages": outcome({})}, "digest": {"op-1": outcome(DIGEST)}})


def attack_of(thief: Outcome, caller: Outcome) -> RunResult:
    return run_of({"attack": {"thief": thief, "caller": caller}})


def acts_of(*acts: str) -> Outcome:
    refusal = {"done": False, "answer": "EPERM (PermissionError)", "loot": None}
    return outcome({"acts": [{"act": act, **refusal} for act in acts]})


DENIED = attack_of(acts_of("secret", "home", "neighbour"), acts_of("tcp", "udp"))


@pytest.fixture
def shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Show:
    """Run the verb with a report and an attack that are given; exit code, stdout and stderr."""

    def show(report: RunResult, attack: Callable[[dict[str, Any]], RunResult], *options: str) -> tuple[int, str, str]:
        asked: list[tuple[Path, tuple[str, ...]]] = []

        def run(template: Path, *, allow: tuple[str, ...], params: Any = None, **_: object) -> RunResult:
            asked.append((template, allow))
            return report if template == demo.REPORT else attack(params)

        monkeypatch.setattr("sage_sandbox.run", run)
        code = main(["demo", "--project", str(tmp_path), *options])
        assert [(demo.REPORT, ("read:.",)), (demo.HOSTILE, ())] == asked
        return code, *capsys.readouterr()

    return show


def test_a_report_and_a_denied_attack_exit_0(shown: Show) -> None:
    code, out, _ = shown(REPORTED, lambda _: DENIED)

    assert code == 0
    assert "  languages  12 lines\n" in out
    assert "      inside   EPERM (PermissionError)\n" in out
    assert "2 operations, each in a sandbox of its own (level full, memory: sampled)" in out
    assert out.endswith("5 of 5 acts succeeded outside and were denied inside\n")


def test_an_attack_that_succeeds_exits_1_and_names_every_act(shown: Show) -> None:
    def succeed(params: dict[str, Any]) -> RunResult:
        return attack_of(*(outcome(demo_bait._run_plainly(name, params)) for name in ("thief", "caller")))

    code, out, err = shown(REPORTED, succeed)

    assert code == 1
    assert len(ACTS) == err.count("✗ NOT denied: ")
    assert len(ACTS) == out.count("<-- NOT DENIED")
    assert out.endswith("0 of 5 acts succeeded outside and were denied inside\n")


def test_a_hostile_operation_that_was_rejected_shows_nothing_and_exits_1(shown: Show) -> None:
    code, _, err = shown(REPORTED, lambda _: attack_of(outcome(error="boom"), acts_of("tcp", "udp")))

    assert code == 1
    assert "✗ attack/thief did not return what the kernel answered: boom\n" in err


@pytest.mark.parametrize(
    ("report", "expected"),
    [
        (run_of({"digest": {"op-1": outcome(error="bo\x1bom")}}, "failed"), "failed): digest/op-1: bo\\x1bom"),
        (run_of({"survey": {"marks": outcome({})}}, "paused"), "paused): the digest returned something else"),
        (run_of({"digest": {"op-1": outcome([1])}}), "completed): the digest returned something else"),
        (run_of({"digest": {"op-1": outcome({"summary": "x"})}}), "completed): the digest returned something else"),
    ],
)
def test_a_report_that_failed_exits_1_and_says_why(shown: Show, report: RunResult, expected: str) -> None:
    code, _, err = shown(report, lambda _: DENIED)

    assert code == 1
    assert f"✗ the report failed ({expected}\n" in err


def test_a_rejected_operation_is_named_beside_the_report(shown: Show) -> None:
    report = run_of({"history": {"log": outcome(error="exit code 128")}, "digest": {"op-1": outcome(DIGEST)}})

    code, out, _ = shown(report, lambda _: DENIED)

    assert code == 0
    assert "rejected: history/log (exit code 128)" in out


def test_whatever_an_operation_returned_is_escaped_and_cut(shown: Show) -> None:
    nasty = "\x1b]0;owned\x07\u202e" + "long " * 1000
    report = run_of({"digest": {"op-1": outcome({"summary": {nasty: nasty, "list": [nasty]}})}})
    attack = attack_of(outcome({"acts": [{"act": "secret", "done": False, "answer": nasty}]}), outcome(nasty))

    code, out, err = shown(report, lambda _: attack)

    assert code == 1
    assert not {"\x1b", "\x07", "\u202e"} & set(out + err)
    assert len(out) < 6000


def test_json_is_one_document_on_stdout_and_plain_ascii(shown: Show) -> None:
    code, out, _ = shown(
        run_of({"digest": {"op-1": outcome({"summary": {"a": "\x9b\u202e"}})}}), lambda _: DENIED, "--json"
    )

    document = json.loads(out)
    assert code == 0
    assert out.isascii()
    assert {"success", "project", "report", "acts", "errors"} == set(document)
    assert document["report"]["digest"] == {"summary": {"a": "\x9b\u202e"}}
    assert document["report"]["operations"] == [
        {"phase": "digest", "id": "op-1", "status": "fulfilled", "error": "", "durationMs": 0.0, "sandboxLevel": "full"}
    ]


def test_an_unwritable_home_is_said(shown: Show, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "gone"))

    code, _, err = shown(REPORTED, lambda _: DENIED)

    assert code == 0
    assert f"HOME ({tmp_path}/gone) is not writable: the secret file is planted in" in err


# --- the whole, in the sandbox


def test_the_demo_reports_on_the_sample_and_shows_every_act_denied(tmp_path: Path, own_home: Path) -> None:
    done = run_cli("demo", "--json", cwd=tmp_path)

    shown = json.loads(done.stdout)
    assert (done.returncode, shown["errors"], shown["success"]) == (0, [], True), done.stderr
    assert shown["report"]["digest"]["summary"] == {
        "languages": "9 text files, 92 lines: Python 47 %, Text 29 %, JSON 20 %, Markdown 4 %",
        "history": "none to tell: no git repository here",
        "marks": "2 TODO, 1 FIXME; most in notes.txt (3)",
        "functions": "3 Python functions, median 7 lines; longest: readings (tide/gauge.py:17) 10, "
        "smoothed (tide/gauge.py:29) 7, high_waters (tide/high_water.py:6) 3",
        "licences": "MIT (LICENSE.txt), declared MIT (web/package.json)",
        "manifests": "requirements.txt (Python, 2 dependencies), web/package.json (JavaScript, 2 dependencies)",
        "duplicates": "1 group of equal files, 110 B in copies; worst: 2 of 110 B, "
        "data/stations.json = web/stations.json",
        "not read": "nothing",
    }
    assert ACTS == [act["act"] for act in shown["acts"]]
    assert all(act["succeededOutside"] and act["denied"] for act in shown["acts"])
    assert list(own_home.glob("sage-demo-*")) == []


def test_the_demo_tells_a_person_what_happened_outside_and_inside(tmp_path: Path) -> None:
    done = run_cli("demo", cwd=tmp_path)

    assert done.returncode == 0, done.stderr
    assert "outside  read 32 bytes" in done.stdout
    assert "outside  connected, sent" in done.stdout
    assert "NOT DENIED" not in done.stdout
    assert done.stdout.endswith("5 of 5 acts succeeded outside and were denied inside\n")


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_the_demo_reports_the_true_history_of_the_repository_around_it(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "a.py").write_text("def f():\n    return 1\n")
    identity = {"NAME": "Ada", "EMAIL": "ada@example.org", "DATE": "2024-05-06T07:08:09+0000"}
    names = {f"GIT_{role}_{what}": value for role in ("AUTHOR", "COMMITTER") for what, value in identity.items()}
    clean = {"PATH": os.environ["PATH"], "GIT_CONFIG_NOSYSTEM": "1", "HOME": str(tmp_path), **names}
    for argv in (["init", "-q", "-b", "trunk"], ["add", "-A"], ["commit", "-q", "-m", "a change"]):
        subprocess.run(["git", *argv], cwd=tmp_path, env=clean, check=True)

    done = run_cli("demo", "--json", cwd=tmp_path / "src")

    digest = json.loads(done.stdout)["report"]["digest"]
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["project"] == str(tmp_path)
    assert digest["branch"] == "trunk"
    assert digest["report"]["history"]["authors"] == [{"author": "Ada", "commits": 1}]
    assert digest["report"]["history"]["months"] == [{"month": "2024-05", "commits": 1}]


def test_hostile_names_in_the_project_reach_no_terminal(tmp_path: Path) -> None:
    (tmp_path / "\x1b]0;owned\x07\u202e.py").write_text("def f():\n    return 1\n" * 3)
    (tmp_path / "json.py").write_text("raise SystemExit('planted')\n")

    done = run_cli("demo", "--project", str(tmp_path))

    assert done.returncode == 0, done.stderr
    assert not {"\x1b", "\x07", "\u202e"} & set(done.stdout + done.stderr)
    assert "\\x1b]0;owned" in done.stdout


def test_a_project_that_is_not_there_is_a_usage_error(tmp_path: Path) -> None:
    done = run_cli("demo", "--project", str(tmp_path / "gone"))

    assert (2, "") == (done.returncode, done.stdout)
    assert done.stderr.startswith("✗ ")


def test_python_dash_m_runs_the_demo_from_a_folder_with_hostile_modules(tmp_path: Path) -> None:
    (tmp_path / "loky").mkdir()
    for name in ("loky/__init__.py", "json.py", "pickle.py", "click.py"):
        (tmp_path / name).write_text("raise SystemExit('planted')\n")
    argv = [sys.executable, "-m", "sage_sandbox", "demo", "--json", "--project", str(tmp_path)]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    environment["PYTHONPATH"] = PACKAGE_FOLDER

    done = subprocess.run(argv, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False)

    assert done.returncode == 0, done.stderr
    assert "planted" not in done.stdout.replace("nothing of what was planted", "")
