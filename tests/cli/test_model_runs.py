"""Workflows that ask models, from the command line: granted, asked, counted, held to budgets, resumed.

The SDKs are real, the provider is a puppet on loopback. The last tests are processes of their own.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from brokered import ThreadedTools
from commands import run_cli
from model_puppet import KEY, MODEL, model_puppet

from sage_sandbox import brokering
from sage_sandbox.api import resume
from sage_sandbox.cli.main import main
from sage_sandbox.errors import UsageError

ALLOW = ("--allow", "model:*")
SCHEMA = {
    "type": "object",
    "properties": {"n": {"type": "integer"}},
    "required": ["n"],
    "additionalProperties": False,
}


def question(prompt, model="anthropic/puppet", **more):
    return {"type": "llm", "model": model, "prompt": prompt, "max_tokens": 100, **more}


def document(*phases, **head):
    made = [
        {"id": f"p{n}", "name": "P", "operations": operations, "dependencies": [f"p{n - 1}"] if n > 1 else []}
        for n, operations in enumerate(phases, 1)
    ]
    return json.dumps({"name": "Models", "phases": made, **head})


def template(world, *phases, **head):
    (world.project / "t.yaml").write_text(document(*phases, **head))


@pytest.fixture
def puppet():
    with model_puppet() as server:
        yield server


@pytest.fixture
def models(world, puppet, monkeypatch):
    """The project of `world`; the broker is in this process."""

    class Quick(ThreadedTools):
        broker_settings = {"jitter": lambda: 0.0}  # noqa: RUF012

    monkeypatch.setattr(brokering, "Tools", Quick)
    for name, value in puppet.environ.items():
        monkeypatch.setenv(name, value)
    return world


def kept_run(*options):
    """A run with the project's cache, which `models.run` has not."""
    return main(("run", "t.yaml", "f", "--restart", *ALLOW, *options))


def phases_of(capsys):
    return {phase["id"]: phase for phase in json.loads(capsys.readouterr().out)["results"]["phases"]}


def audit(world):
    lines = (world.project / ".sage" / "logs" / "audit.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def configure(own_home, text):
    folder = own_home / ".config" / "sage-sandbox"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.toml").write_text(text)


def test_nothing_is_asked_that_was_not_granted(models, puppet, capsys):
    template(models, question("say hello"), question("say more", "openai/puppet"))

    assert models.run("--allow", "model:anthropic/*") == 15
    said = capsys.readouterr().err
    assert "--allow model:openai/puppet" in said
    assert "model:anthropic" not in said
    assert puppet.asked == []
    assert not models.state("workflow-f.json").exists()


def test_models_are_asked_with_the_results_of_others(models, puppet, capsys):
    template(
        models,
        [question("say hello"), question('say {"n": 3}', "openai/puppet", schema=SCHEMA)],
        question("say ${p1.op-2.n} for ${feature}: ${p1}", system="about ${p1.op-1}"),
    )

    assert models.run(*ALLOW, "--json") == 0
    found = phases_of(capsys)
    assert [operation["result"] for operation in found["p1"]["operations"]] == ["hello", {"n": 3}]
    assert found["p2"]["operations"][0]["result"] == '3 for f: {"op-1": "hello", "op-2": {"n": 3}}'
    assert puppet.asked[-1].body["system"] == "about hello"
    assert [entry["kind"] for entry in audit(models)].count("usage") == 3


def test_a_reference_in_an_answer_stays_text(models, capsys):
    template(models, question("say $${p1}"), question("say ${p1}"))

    assert models.run(*ALLOW) == 0
    assert capsys.readouterr().out.count("${p1}") == 2


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("no json", "the answer is not JSON"),
        ('{"n": "3"}', "the answer.'n' must be integer, not \\\"3\\\""),
        ('{"n": 1, "m": 2}', "the answer has 'm', which the schema does not name"),
        ("[" * 65 + "]" * 65, "nested deeper than 64"),
    ],
)
def test_an_answer_that_is_not_as_its_schema_says_is_rejected_and_was_paid_for(models, capsys, text, error):
    template(models, question(f"say {text}", schema=SCHEMA))

    assert models.run(*ALLOW, "--json") == 1
    said = capsys.readouterr().out
    assert error in said
    assert json.loads(said)["results"]["metrics"]["models"]["tokens"] == 155


def test_an_answer_that_was_cut_is_no_answer(models, capsys):
    template(models, question("cut short"))

    assert models.run(*ALLOW) == 1
    said = capsys.readouterr().err
    assert "anthropic/puppet reached 100 tokens before its answer was whole" in said
    assert "hint: raise its max_tokens" in said


def test_an_answer_of_before_stands_in_for_a_provider_that_is_unavailable_and_costs_nothing(models, puppet, capsys):
    template(models, question('say {"n": 3}', schema=SCHEMA))
    assert kept_run() == 0
    puppet.is_down = True
    capsys.readouterr()

    assert kept_run("--json") == 0
    said = capsys.readouterr()
    results = json.loads(said.out)["results"]
    (operation,) = results["phases"][0]["operations"]
    (answer,) = operation["cachedAnswers"]
    assert {"n": 3} == operation["result"]
    assert ("model:anthropic/puppet", True) == (answer["tool"], answer["unavailable"])
    assert [] == operation["usage"]
    assert "⚠ External API unavailable (model:anthropic) · ✓ using cached data from" in said.err
    assert [f"model:{MODEL}"] == [entry["text"] for entry in audit(models) if entry["kind"] == "cached"]


@pytest.mark.parametrize(
    ("first", "second", "fields"),
    [((), ("--no-cache",), {}), (("--no-cache",), (), {}), ((), (), {"cache": False}), ((), (), {"system": "other"})],
)
def test_nothing_stands_in_that_was_not_kept_or_is_the_answer_to_something_else(models, puppet, first, second, fields):
    template(models, question("say hello"))
    assert kept_run(*first) == 0
    template(models, question("say hello", **fields))
    puppet.is_down = True

    assert kept_run(*second) == 3


def test_a_question_that_may_be_cached_is_asked_once(models, puppet, capsys):
    template(models, question("say hello", cache=True))
    assert kept_run() == 0
    assert kept_run() == 0

    assert ["say hello"] == puppet.prompts
    assert "✓ p1/op-1 cached, " in capsys.readouterr().err


def test_an_answer_that_is_not_as_its_schema_says_is_not_kept(models, puppet):
    template(models, question("say no json", schema=SCHEMA, cache=True))
    assert kept_run() == 1
    assert kept_run() == 1

    assert ["say no json"] * 2 == puppet.prompts


def test_retries_count_each_attempt(models, capsys):
    template(models, question("say no json", schema=SCHEMA, retries=1))

    assert models.run(*ALLOW, "--json") == 1
    (usage,) = json.loads(capsys.readouterr().out)["results"]["metrics"]["models"]["byModel"]
    assert (usage["times"], usage["input"]) == (2, 200)


def test_a_provider_that_does_not_answer_pauses_the_run(models, puppet, capsys):
    template(models, question("say kept"), question("broken now"))

    assert models.run(*ALLOW) == 3
    assert "resume later with: sage-sandbox resume f" in capsys.readouterr().err
    (models.project / "t.yaml").write_text((models.project / "t.yaml").read_text().replace("broken now", "say better"))
    assert models.resume("--update") == 0
    assert puppet.prompts == ["say kept", "broken now", "say better"]


def test_an_empty_prompt_is_not_sent(models, puppet, capsys):
    template(models, question("say  "), question("${p1}"))

    assert models.run(*ALLOW) == 1
    assert "the references left nothing of the prompt" in capsys.readouterr().err
    assert puppet.prompts == ["say  "]


def test_tokens_are_in_the_checkpoint_and_in_the_state(models):
    template(models, [question("say a"), question("say b")])
    models.run(*ALLOW)
    from sage_sandbox.disk.places import project_place
    from sage_sandbox.store.layout import state_folder
    from sage_sandbox.store.opening import open_keys
    from sage_sandbox.store.reading import read_run

    place = project_place(models.project)
    with place.folder, state_folder(models.project) as folder:
        found = read_run(folder, place, "f", open_keys(os.environ, place))

    assert found.checkpoints["p1"].tokens == 310
    assert found.checkpoints["p1"].spent["usage"][0]["input"] == 200
    assert found.state.metrics["totalTokens"] >= 310
    assert found.state.metrics["models"]["tokens"] == 310
    assert found.checkpoints["p1"].operations[0][1].usage[0].total == 155


# -- budgets -------------------------------------------------------------------------------------------------------


THREE = (question("say a"), question("say b"), question("say c"))


def test_a_budget_pauses_the_run_and_a_higher_one_lets_it_go_on(models, puppet, capsys):
    template(models, *THREE, budgets={"tokens": 300})

    assert models.run(*ALLOW, "--budget", "tokens=500") == 3
    said = capsys.readouterr().err
    assert "budget_exceeded: 310 of 300 tokens are spent" in said
    assert "resume with --budget tokens=610" in said
    assert puppet.prompts == ["say a", "say b"]

    assert models.resume() == 3
    assert "budget_exceeded: 310 of 300 tokens are spent" in capsys.readouterr().err
    assert len(puppet.asked) == 2

    assert models.main("status", "f") == 0
    assert "budget_exceeded: 310 of 300 tokens are spent" in capsys.readouterr().out

    assert models.resume("--budget", "tokens=311") == 0
    assert "465 tokens of models" in capsys.readouterr().err
    assert puppet.prompts == ["say a", "say b", "say c"]


def test_a_budget_that_was_raised_stays_so(models, puppet):
    template(models, *THREE, budgets={"tokens": 1})

    assert models.run(*ALLOW) == 3
    assert models.resume("--budget", "tokens=156") == 3
    assert len(puppet.asked) == 2
    assert models.resume() == 3
    assert len(puppet.asked) == 2
    assert models.resume("--budget", "tokens=1000") == 0


def test_what_was_spent_on_answers_that_do_not_count_any_more_counts(models, puppet, capsys):
    template(models, *THREE)
    assert models.run(*ALLOW, "--budget", "tokens=300") == 3

    assert models.resume("--from", "p1", "--budget", "tokens=450") == 3
    assert "budget_exceeded: 465 of 450 tokens are spent" in capsys.readouterr().err
    assert puppet.prompts == ["say a", "say b", "say a"]


def test_what_a_process_spent_that_was_killed_counts(models, puppet, killed_at, capsys):
    template(models, *THREE, budgets={"tokens": 400})
    with killed_at("p3"):
        models.run(*ALLOW)
    puppet.asked.clear()

    assert models.resume() == 0  # 310 were written down with p2; what p3 took before the end is not known
    template_usage = json.dumps(puppet.prompts)
    assert template_usage == '["say c"]'
    assert "465 tokens of models" in capsys.readouterr().err


def test_a_budget_of_cost_goes_by_the_users_prices(models, puppet, own_home, capsys):
    template(models, *THREE, budgets={"cost": 0.0005})
    assert models.run(*ALLOW) == 2
    said = capsys.readouterr().err
    assert "a budget of cost needs to know what anthropic/puppet costs" in said
    assert '[prices."anthropic/puppet"]' in said
    assert puppet.asked == []

    configure(own_home, '[prices."anthropic/puppet"]\ninput = 1\noutput = 10\ncache_read = 0.1\ncache_write = 1.25')
    assert models.run(*ALLOW, "--json") == 3
    assert json.loads(capsys.readouterr().out)["results"]["metrics"]["models"]["cost"] == pytest.approx(
        2 * (100 + 200 + 3 + 6.25) / 1e6, abs=1e-6
    )
    assert len(puppet.asked) == 2


def test_the_library_takes_budgets_as_typed(models, puppet):
    template(models, *THREE)
    models.run(*ALLOW, "--budget", "tokens=1")

    assert resume("f", project=models.project, budgets=["tokens=1000"]).ok
    with pytest.raises(UsageError, match="--budget does not know"):
        resume("f", project=models.project, budgets=["token=1000"])


def test_a_plan_names_the_model_where_the_prompt_goes_and_the_budgets(models, capsys):
    template(models, question("say hello"), budgets={"tokens": 5000, "cost": 1.5, "time": "10m"})

    assert models.main("plan", "t.yaml") == 0
    said = capsys.readouterr().out
    assert "llm  anthropic/puppet" in said
    assert "✗ model:anthropic/puppet  not granted: the prompt leaves to anthropic, and costs what that charges" in said
    assert "paused once it has spent 5,000 tokens, a cost of 1.5, 10 min of running" in said


# -- what is missing -----------------------------------------------------------------------------------------------


def test_a_missing_package_is_said_with_the_line_that_installs_it(models, puppet, monkeypatch, capsys):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "anthropic" else find(name))
    template(models, question("say hello"))

    assert models.run(*ALLOW) == 2
    said = capsys.readouterr().err
    assert "to ask anthropic, the package anthropic is needed, and it is not installed" in said
    assert "pip install 'sage-sandbox[llm]'" in said


def test_a_missing_key_and_an_unknown_provider_are_said(models, monkeypatch, capsys):
    template(models, question("say hello"))
    monkeypatch.delenv("ANTHROPIC_API_KEY")
    assert models.run(*ALLOW) == 2
    assert "the model provider anthropic needs a key" in capsys.readouterr().err

    template(models, question("say hello", "mistral/large"))
    assert models.run(*ALLOW) == 2
    assert "there is no model provider mistral" in capsys.readouterr().err


def test_a_project_says_nothing_about_where_keys_go(models, puppet, capsys):
    (models.project / ".sage").mkdir(exist_ok=True)
    (models.project / ".sage" / "config.toml").write_text('[models.anthropic]\nbase_url = "http://127.0.0.1:9"')
    template(models, question("say hello"))

    assert models.run(*ALLOW) == 0
    assert puppet.prompts == ["say hello"]


def test_a_provider_of_the_users_own_is_asked_without_a_key(models, puppet, own_home, capsys):
    configure(own_home, f'[models.local]\napi = "openai"\nbase_url = "{puppet.url}/v1"')
    template(models, question("say hello", "local/llama-3:8b"))

    assert models.run("--allow", "model:local/*") == 0
    assert puppet.asked[0].body["model"] == "llama-3:8b"
    assert KEY not in str(puppet.asked[0].headers)


def test_exec_has_nothing_to_run_in_the_place_of_a_question(models, capsys):
    template(models, question("say hello"))

    assert models.main("exec", "--like", "t.yaml:p1/op-1", *ALLOW) == 2
    assert models.main("exec", *ALLOW, "--", "true") == 2
    assert "models are asked by the operations of a workflow only" in capsys.readouterr().err


# -- processes of their own ----------------------------------------------------------------------------------------


def test_the_key_is_nowhere_but_with_the_provider(tmp_path, puppet):
    project = tmp_path / "project"
    project.mkdir()
    code = "import os\ndef run():\n    return dict(os.environ)"
    environ = {"type": "python", "code": code}
    (project / "t.yaml").write_text(document([question("key please"), environ]))
    done = run_cli("run", "t.yaml", "f", *ALLOW, "--full", "--json", cwd=project, env=puppet.environ)
    left = [path for path in project.rglob("*") if path.is_file() and path.name != "t.yaml"]

    assert done.returncode == 0, done.stderr
    assert "your key is [secret:known]" in done.stdout
    assert KEY in str(puppet.asked[0].headers)
    assert KEY not in done.stdout + done.stderr
    assert "API_KEY" not in done.stdout
    assert left
    assert not [path for path in left if KEY.encode() in path.read_bytes()]


def test_a_worker_has_no_key_in_its_environment(tmp_path, puppet):
    project = tmp_path / "project"
    project.mkdir()
    (project / "t.yaml").write_text(document([question("stall now"), question("say hello")]))
    started = run_cli("run", "t.yaml", "f", *ALLOW, "--detach", "--json", cwd=project, env=puppet.environ)
    assert started.returncode == 0, started.stderr
    assert puppet.stalled.wait(60)
    seen = _environments(json.loads(started.stdout)["pid"])
    cancelled = run_cli("cancel", "f", cwd=project)

    assert cancelled.returncode == 0, cancelled.stderr
    assert puppet.hung_up.wait(60)
    assert seen
    assert not [name for name, data in seen.items() if KEY.encode() in data]


EXAMPLE = Path(__file__).parents[2] / ".sage" / "templates" / "what-changed.yaml"


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_the_example_keeps_what_the_model_did_not_make_up(tmp_path, puppet):
    project = tmp_path / "project"
    project.mkdir()
    who = ("-c", "user.name=n", "-c", "user.email=n@example.org")
    for args in (["init", "-q"], [*who, "commit", "-q", "--allow-empty", "-m", "Say hello"]):
        subprocess.run(["git", *args], cwd=project, check=True)
    commit = subprocess.run(
        ["git", "log", "--format=%h"], cwd=project, check=True, capture_output=True, text=True
    ).stdout.strip()
    told = [{"commit": commit, "change": "it says hello"}, {"commit": "0000000", "change": "it sings"}]
    puppet.by_default = json.dumps({"changes": told})
    allow = ("--allow", "read:.git", "--allow", "model:anthropic/*")
    done = run_cli("run", str(EXAMPLE), "f", *allow, "--json", cwd=project, env=puppet.environ)

    assert done.returncode == 0, done.stderr
    (judged,) = json.loads(done.stdout)["results"]["phases"][2]["operations"]
    assert judged["result"] == {"changes": told[:1], "made_up": ["0000000"]}
    assert f"{commit} Say hello" in puppet.prompts[0]


def _environments(pid):
    """What can be read of the environments of a process and all below it, by pid (undumpable ones are root's only)."""
    seen = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            session = (folder / "stat").read_text().rpartition(")")[2].split()
            if int(session[3]) == pid or int(session[1]) == pid or folder.name == str(pid):
                seen[folder.name] = (folder / "environ").read_bytes()
        except PermissionError:
            seen[folder.name] = b""
        except OSError:
            continue
    return seen
