from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sage_sandbox.errors import NotGranted, UsageError
from sage_sandbox.grants.coverage import covers
from sage_sandbox.grants.places import Places, is_beneath
from sage_sandbox.grants.review import Review, grant_policy, refusal, require, review
from sage_sandbox.policy import Grant, Policy, parse_grant
from sage_sandbox.workflow.definition import Workflow


@pytest.fixture
def look(project: Path, places: Places, make_workflow: Callable[..., Workflow]):
    """Review one operation's (or several operations') asks against typed grants."""

    def look(asks: Policy | list[Policy], *texts: str, places: Places = places) -> Review:
        policies = [asks] if isinstance(asks, Policy) else asks
        return review(make_workflow(*policies), [parse_grant(text) for text in texts], project, places=places)

    return look


def _granted(seen: Review, number: int = 1) -> Policy:
    return seen.policies["survey", f"op-{number}"]


def _missing(seen: Review) -> list[str]:
    return [str(grant) for grant in seen.missing]


class TestGranting:
    def test_a_workflow_that_asks_for_nothing_needs_nothing(self, look) -> None:
        seen = look(Policy())

        assert seen.complete
        assert seen.rows == ()
        assert Policy() == _granted(seen)

    def test_what_is_asked_and_granted_is_given_with_its_real_path(self, look, project: Path) -> None:
        seen = look(Policy(read=("src",), loopback=True, env=("CI",)), "read:src", "loopback", "env:CI")

        assert seen.complete
        assert Policy(read=(f"{project}/src",), loopback=True, env=("CI",)) == _granted(seen)

    def test_a_wider_grant_gives_only_what_was_asked(self, look, project: Path) -> None:
        seen = look(Policy(read=("src/deep",)), "read:.", "write:docs", "env:CI", "loopback", "write!:mise.toml")

        assert Policy(read=(f"{project}/src/deep",)) == _granted(seen)

    def test_a_write_grant_gives_no_more_than_a_read_where_that_is_asked(self, look, project: Path) -> None:
        assert Policy(read=(f"{project}/src",)) == _granted(look(Policy(read=("src",)), "write-through:."))

    def test_each_operation_gets_its_own_asks_only(self, look, project: Path) -> None:
        seen = look([Policy(read=("src",)), Policy(read=("docs",))], "read:.")

        assert Policy(read=(f"{project}/src",)) == _granted(seen, 1)
        assert Policy(read=(f"{project}/docs",)) == _granted(seen, 2)

    def test_the_rest_is_given_where_something_is_missing(self, look, project: Path) -> None:
        seen = look(Policy(read=("src", "docs")), "read:src")

        assert not seen.complete
        assert Policy(read=(f"{project}/src",)) == _granted(seen)

    def test_two_ways_to_write_one_path_are_one(self, look, project: Path) -> None:
        assert Policy(read=(f"{project}/src",)) == _granted(look(Policy(read=("src", "./src")), "read:src"))

    def test_a_template_cannot_take_names_off_the_list(self, look) -> None:
        assert _granted(look(Policy(write=("docs",), unprotected=(".git",)), "write:.")).unprotected == ()

    def test_a_folder_grant_does_not_show_a_hidden_file_that_the_template_names(self, look) -> None:
        seen = look(Policy(read=(".env", ".git/config")), "read:.")

        assert ["read:.env", "read:.git/config"] == _missing(seen)

    def test_a_grant_that_cannot_be_meant_is_a_usage_error(self, look) -> None:
        with pytest.raises(UsageError, match="--allow read:nothing: no such file or folder"):
            look(Policy(), "read:nothing")

    def test_the_surroundings_are_looked_up_when_not_given(
        self, project: Path, make_workflow: Callable[..., Workflow]
    ) -> None:
        seen = review(make_workflow(Policy(read=("src",))), [Grant("read", ".")], project)

        assert Policy(read=(f"{project}/src",)) == _granted(seen)


class TestMissing:
    def test_it_is_what_would_have_to_be_typed(self, look) -> None:
        seen = look(Policy(read=("src",), write=("docs",), loopback=True, env=("CI",)))

        assert ["read:src", "write:docs", "loopback", "env:CI"] == _missing(seen)

    def test_what_another_one_covers_is_left_out(self, look) -> None:
        seen = look([Policy(read=("src/deep", "docs", ".env")), Policy(read=("src", "./src"), write=("docs",))])

        assert ["read:.env", "read:src", "write:docs"] == _missing(seen)

    def test_wanted_is_the_same_resolved(self, look, project: Path) -> None:
        seen = look(Policy(read=("src",), loopback=True))

        assert (Grant("read", f"{project}/src"), Grant("loopback")) == seen.wanted

    def test_a_tilde_in_a_template_is_spelled_so_that_it_stays_in_the_project(self, look, project: Path) -> None:
        seen = look(Policy(read=("~",)))

        assert ["read:./~"] == _missing(seen)
        assert Policy(read=(f"{project}/~",)) == _granted(look(Policy(read=("~",)), "read:./~"))

    def test_a_private_path_is_missing_with_its_mark_and_no_plain_yes_can_give_it(self, look, home: Path) -> None:
        seen = look(Policy(read=(f"{home}/.ssh", "src")))

        assert [f"read!:{home}/.ssh", "read:src"] == _missing(seen)
        assert ["read"] == [grant.kind for grant in seen.wanted]
        assert "is a hidden entry of your home folder" in seen.problems[0]
        assert look(Policy(read=(f"{home}/.ssh", "src")), *_missing(seen)).complete

    def test_a_home_that_was_granted_on_purpose_holds_its_dot_folders(self, look, home: Path) -> None:
        assert look(Policy(read=(f"{home}/.ssh",)), "read!:~").complete

    def test_a_path_and_the_same_path_spelled_otherwise_are_one_even_when_private(self, look, home: Path) -> None:
        seen = look(Policy(read=(f"{home}/.ssh", f"{home}/./.ssh")))

        assert 1 == len(seen.missing)

    def test_a_protected_name_is_missing_beside_its_path(self, look, project: Path) -> None:
        (project / "src/conftest.py").touch()
        asks = Policy(write=("src/conftest.py",))

        seen = look(asks)

        assert ["write:src/conftest.py", "write!:conftest.py"] == _missing(seen)
        assert "conftest.py is a protected name" in seen.problems[0]
        assert look(asks, *_missing(seen)).complete
        assert ["write!:conftest.py"] == _missing(look(asks, "write:src"))

    def test_a_protected_name_at_the_top_is_granted_by_its_name_alone(self, look, project: Path) -> None:
        asks = Policy(write=(".github/workflows",))

        assert ["write!:.github/workflows"] == _missing(look(asks))
        assert Policy(write=(f"{project}/.github/workflows",), unprotected=(".github/workflows",)) == _granted(
            look(asks, "write!:.github/workflows")
        )

    def test_lifting_a_name_grants_no_direct_write(self, look) -> None:
        asks = Policy(write_through=(".git/hooks",))

        assert ["write-through:.git/hooks"] == _missing(look(asks, "write!:.git"))
        assert look(asks, "write!:.git", "write-through:.git/hooks").complete

    def test_a_protected_name_that_is_only_somewhere_below_is_lifted_by_name(self, look, project: Path) -> None:
        (project / "src/mise.toml").touch()

        assert ["write:src/mise.toml", "write!:mise.toml"] == _missing(look(Policy(write=("src/mise.toml",))))


class TestRefused:
    @pytest.mark.parametrize(
        ("asks", "reason"),
        [
            (Policy(net=("*.co.uk:443",)), "*.co.uk would be everybody's hosts"),
            (Policy(net=("example.org",)), "the port is missing"),
            (Policy(tool=("*",)), "neither server/tool nor server/*"),
            (Policy(env=("LD_PRELOAD",)), "never handed in"),
            (Policy(read=("/proc",)), "a part of the host that no sandbox shows"),
            (Policy(read=("nothing",)), "it must exist before the run"),
            (Policy(read=("~/.ssh",)), "~ stands for home after --allow only"),
        ],
    )
    def test_it_is_a_problem_that_no_grant_solves(self, look, asks: Policy, reason: str) -> None:
        seen = look(asks)

        assert not seen.complete
        assert seen.missing == ()
        assert seen.problems[0].startswith("survey/op-1 asks for ")
        assert reason in seen.problems[0]
        assert reason in seen.rows[0].note
        assert Policy() == _granted(seen)

    def test_a_steering_folder_is_never_written(self, look, tmp_path: Path) -> None:
        assert "never granted for writing" in look(Policy(write=(f"{tmp_path.resolve()}/tools/bin",))).problems[0]

    def test_a_problem_is_told_once(self, look) -> None:
        seen = look([Policy(read=("nothing",)), Policy(read=("nothing",), loopback=True)])

        assert 1 == len(seen.problems)
        assert 3 == len(seen.rows)

    def test_a_problem_is_fit_for_a_terminal(self, look) -> None:
        assert "\\x1b[2J" in look(Policy(read=("\x1b[2J",))).problems[0]


class TestRows:
    def test_there_is_one_for_each_ask_of_each_operation(self, look, project: Path) -> None:
        seen = look([Policy(read=("src",)), Policy(write=("docs",), loopback=True)], "read:src", "loopback")

        assert [
            ("op-1", "read:src", True, f"{project}/src"),
            ("op-2", "write:docs", False, f"{project}/docs"),
            ("op-2", "loopback", True, ""),
        ] == [(row.operation, str(row.ask), row.granted, row.path) for row in seen.rows]

    def test_the_note_says_what_to_know(self, look, home: Path) -> None:
        seen = look(Policy(read=(f"{home}/.netrc",), write=("docs",)))

        assert "hidden entry of your home folder; hidden unless named" in seen.rows[0].note
        assert seen.rows[1].note == "kept only if the operation succeeds"


class TestRefusal:
    def test_a_complete_review_is_let_through(self, look) -> None:
        require(look(Policy()))

    def test_what_is_missing_is_ready_to_be_typed(self, look, project: Path) -> None:
        (project / "my docs").mkdir()

        with pytest.raises(NotGranted) as caught:
            require(look(Policy(read=("src", "my docs"))))

        assert caught.value.missing == ("--allow read:src", "--allow 'read:my docs'")
        assert caught.value.hint == "if you trust the template, add --allow read:src --allow 'read:my docs'"
        assert str(caught.value) == "2 things are asked for and not granted"

    def test_problems_are_in_the_message_and_there_is_no_hint_without_a_way(self, look) -> None:
        error = refusal(look(Policy(net=("*.com:443",))))

        assert str(error).startswith("1 thing is asked for and not granted; survey/op-1 asks for net:*.com:443: *.com")
        assert error.hint == ""


class TestPolicyWithoutTemplate:
    def test_it_is_exactly_the_grants(self, project: Path, places: Places) -> None:
        grants = [parse_grant(text) for text in ("read:src", "write:docs", "loopback", "env:CI", "write!:mise.toml")]

        assert Policy(
            read=(f"{project}/src",), write=(f"{project}/docs",), loopback=True, env=("CI",), unprotected=("mise.toml",)
        ) == grant_policy(grants, project, places=places)

    def test_the_surroundings_are_looked_up_when_not_given(self, project: Path) -> None:
        assert Policy(read=(str(project),)) == grant_policy([Grant("read", ".")], project)


NAMES = st.sampled_from(
    [".", "src", "src/a.py", "src/deep", "./src", "docs", ".env", ".git", ".git/config", "server.key", "conftest.py",
     "~", "nothing", "..", "/", "/etc", "/proc", "HOME", "HOME/.ssh", "HOME/plans"]
)  # fmt: skip
POLICIES = st.builds(
    Policy,
    read=st.lists(NAMES, max_size=3).map(tuple),
    write=st.lists(NAMES, max_size=2).map(tuple),
    write_through=st.lists(NAMES, max_size=2).map(tuple),
    loopback=st.booleans(),
    env=st.lists(st.sampled_from(["CI", "PATH", "A B"]), max_size=2).map(tuple),
    net=st.lists(
        st.sampled_from(["example.org:443", "API.example.org:443", "*.example.org:443", "*.org:443"]), max_size=2
    ).map(tuple),
)
KEEP_FIXTURES = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)


@pytest.fixture
def at_home(home: Path):
    """Put the real home where a generated policy says HOME."""

    def put(policy: Policy) -> Policy:
        def moved(paths: tuple[str, ...]) -> tuple[str, ...]:
            return tuple(path.replace("HOME", str(home)) for path in paths)

        return replace(
            policy, read=moved(policy.read), write=moved(policy.write), write_through=moved(policy.write_through)
        )

    return put


@KEEP_FIXTURES
@given(asks=st.lists(POLICIES, min_size=1, max_size=3))
def test_adding_what_is_missing_leaves_nothing_missing(look, at_home, asks: list[Policy]) -> None:
    asks = [at_home(policy) for policy in asks]
    first = look(asks)

    second = look(asks, *_missing(first))

    assert second.missing == ()
    refused = {row.ask for row in first.rows if not row.granted and not row.path and "CI" != row.ask.value}
    allowed = {ask for ask in refused if ask.kind == "net" and ask.value != "*.org:443"}
    assert {row.ask for row in second.rows if not row.granted} == refused - allowed - {Grant("loopback")}


@KEEP_FIXTURES
@given(asks=POLICIES, allowed=POLICIES)
def test_nothing_outside_the_union_of_the_grants_is_ever_given(
    look, at_home, places: Places, asks: Policy, allowed: Policy
) -> None:
    typed = _missing(look(at_home(allowed)))
    granted = _granted(look(at_home(asks), *typed))
    union = grant_policy([parse_grant(text) for text in typed], Path(places.project), places=places)

    for path in granted.read:
        assert any(is_beneath(path, root) for root in (*union.read, *union.write, *union.write_through))
    for path in granted.write:
        assert any(is_beneath(path, root) for root in (*union.write, *union.write_through))
    assert all(any(is_beneath(path, root) for root in union.write_through) for path in granted.write_through)
    assert set(granted.env) <= set(union.env)
    assert union.loopback or not granted.loopback
    assert set(granted.unprotected) <= set(union.unprotected)


@KEEP_FIXTURES
@given(asks=POLICIES, allowed=POLICIES, more=POLICIES)
def test_fewer_grants_never_give_more(look, at_home, asks: Policy, allowed: Policy, more: Policy) -> None:
    few = _missing(look(at_home(allowed)))
    many = [*few, *_missing(look(at_home(more)))]

    less, rest = look(at_home(asks), *few), look(at_home(asks), *many)

    assert {row.ask for row in less.rows if row.granted} <= {row.ask for row in rest.rows if row.granted}


@KEEP_FIXTURES
@given(asks=st.lists(POLICIES, max_size=3))
def test_no_missing_grant_covers_another(look, at_home, asks: list[Policy]) -> None:
    wanted = look([at_home(policy) for policy in asks]).wanted

    assert not [(one, two) for one in wanted for two in wanted if one != two and covers(one, two)]
