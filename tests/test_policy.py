from __future__ import annotations

import pickle
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage_sandbox.errors import UsageError
from sage_sandbox.policy import (
    GRANT_KINDS,
    HIDDEN_NAMES,
    PROTECTED_NAMES,
    GiB,
    Grant,
    KiB,
    Limits,
    MiB,
    Policy,
    ceilings,
    fold,
    format_duration,
    format_size,
    grants_tool,
    is_git_config,
    is_hidden,
    is_protected,
    is_tool_grant,
    is_tool_name,
    parse_duration,
    parse_grant,
    parse_size,
    runs_later,
)

NAMES = st.text(st.characters(blacklist_characters="/\0", blacklist_categories=["Cs"]), min_size=1, max_size=12)


class TestGrants:
    @pytest.mark.parametrize(
        ("expected", "text"),
        [
            (Grant("read", "src"), "read:src"),
            (Grant("read", "a:b"), "read:a:b"),
            (Grant("read", "~", forced=True), "read!:~"),
            (Grant("write", ".git", forced=True), "write!:.git"),
            (Grant("write-through", "data"), "write-through:data"),
            (Grant("loopback"), "loopback"),
            (Grant("net", "api.example.org:443"), "net:api.example.org:443"),
            (Grant("tool", "sage-research/*"), "tool:sage-research/*"),
            (Grant("env", "CI"), "env:CI"),
        ],
    )
    def test_a_grant_is_read_and_written_alike(self, expected: Grant, text: str) -> None:
        assert expected == parse_grant(text)
        assert text == str(expected)

    @pytest.mark.parametrize(
        ("message", "text"),
        [
            ("does not know ''", ""),
            ("does not know 'reed'", "reed:src"),
            ("does not know 'env!'", "env!:CI"),
            ("does not know 'write-through!'", "write-through!:x"),
            ("does not know 'read!!'", "read!!:x"),
            ("loopback takes no value", "loopback:x"),
            ("does not know 'loopback!'", "loopback!"),
            ("--allow read needs a value", "read"),
            ("--allow read needs a value", "read!:"),
            ("a NUL byte is in the value", "read:a\0"),
            *(
                ("--allow tool takes SERVER/TOOL or SERVER/*", f"tool:{value}")
                for value in (
                    "*",
                    "a",
                    "a/",
                    "/b",
                    "*/b",
                    "a/b/c",
                    "a/b*",
                    "a/?",
                    "a b/c",
                    "../b",
                    "a/..",
                    "a/b\n",
                    "é/b",
                )
            ),
            *(
                ("--allow model takes PROVIDER/MODEL, PROVIDER/* or *", f"model:{value}")
                for value in ("claude", "a/", "/m", "*/m", "A/m", "a/m*", "a/ m", "a//m", "a/.m", "a/m\n", "a/é")
            ),
        ],
    )
    def test_what_is_no_grant_is_refused_in_the_users_words(self, message: str, text: str) -> None:
        with pytest.raises(UsageError, match="--allow") as caught:
            parse_grant(text)

        assert message in str(caught.value)

    @given(
        st.sampled_from([kind for kind in GRANT_KINDS if kind not in ("loopback", "tool", "model")]),
        st.text(min_size=1).filter(lambda v: "\0" not in v),
    )
    def test_any_value_comes_back(self, kind: str, value: str) -> None:
        assert Grant(kind, value) == parse_grant(f"{kind}:{value}")  # type: ignore[arg-type]

    @given(st.text())
    def test_any_text_is_a_grant_or_a_usage_error(self, text: str) -> None:
        try:
            grant = parse_grant(text)
        except UsageError:
            return
        assert grant == parse_grant(str(grant))


class TestTools:
    @given(st.from_regex(r"[a.]{1,3}/[a./*]{1,5}", fullmatch=True))
    def test_what_is_granted_by_its_name_is_a_tools_name(self, text: str) -> None:
        assert not is_tool_grant(text) or text.endswith("/*") or is_tool_name(text)
        assert not is_tool_name(text) or not {"", ".", ".."} & {*text.split("/")}

    @pytest.mark.parametrize(
        ("granted", "tool"), [("a/b", "a/b"), ("a/*", "a/b"), ("a/*", "a/b/c"), ("a.b/*", "a.b/c")]
    )
    def test_a_grant_allows_its_tool_or_all_of_its_server(self, granted: str, tool: str) -> None:
        assert grants_tool(("x/y", granted), tool)

    @pytest.mark.parametrize(
        ("granted", "tool"),
        [
            ("a/b", "a/B"),
            ("a/b", "a/bc"),
            ("a/*", "ab/c"),
            ("a/*", "b/a/c"),
            ("*", "a/b"),
            ("*/*", "a/b"),
            ("a/b*", "a/bc"),
        ],
    )
    def test_a_grant_allows_no_other(self, granted: str, tool: str) -> None:
        assert not grants_tool((granted,), tool)

    @pytest.mark.parametrize(
        "text",
        [
            "a",
            "a/",
            "/a",
            "a/b\0",
            "a/b\n",
            "a/../b",
            "../a",
            "a/./b",
            "a//b",
            "a/b/",
            "a b/c",
            "é/a",
            "a/" + "b" * 129,
        ],
    )
    def test_what_could_be_a_path_or_a_line_is_no_tools_name(self, text: str) -> None:
        assert not is_tool_name(text)


class TestPolicies:
    def test_unset_means_nothing(self) -> None:
        assert not Policy()
        assert Policy().repeatable

    @pytest.mark.parametrize(
        "policy", [Policy(read=("a",)), Policy(loopback=True), Policy(env=("A",)), Policy(net=("a",))]
    )
    def test_anything_set_is_something(self, policy: Policy) -> None:
        assert policy

    @pytest.mark.parametrize(
        "policy", [Policy(write=("a",)), Policy(write_through=("a",)), Policy(net=("a:1",)), Policy(tool=("a/b",))]
    )
    def test_what_reaches_outside_is_not_repeatable(self, policy: Policy) -> None:
        assert not policy.repeatable

    def test_reading_is_repeatable(self) -> None:
        assert Policy(read=("a",), loopback=True, env=("A",)).repeatable

    def test_policies_cross_process_borders(self) -> None:
        policy = Policy(read=("a",), unprotected=(".git",))

        assert policy == pickle.loads(pickle.dumps(policy))


class TestCeilings:
    def test_the_defaults_are_the_documented_ones(self) -> None:
        assert Limits(256 * MiB, 60, 64, 64 * MiB, 600) == Limits()

    def test_the_most_is_the_documented_one(self) -> None:
        assert Limits(4 * GiB, 3600, 512, 4 * GiB, 86_400) == ceilings(8 * GiB)


class TestSizes:
    @pytest.mark.parametrize(
        ("expected", "value"),
        [
            (1, 1),
            (100, "100"),
            (KiB, "1k"),
            (256 * MiB, "256M"),
            (256 * MiB, "256MiB"),
            (256 * MiB, " 256 mb "),
            (GiB // 2, "0.5G"),
            (7, "7B"),
        ],
    )
    def test_a_size_is_read(self, expected: int, value: int | str) -> None:
        assert expected == parse_size(value)

    @pytest.mark.parametrize(
        "value", ["", "M", "-1", 0, -5, "0.5", "1T", "1 2", "nan", "1e3", True, "9" * 400, 10**400, "9" * 400 + "G"]
    )
    def test_what_is_no_size_is_refused(self, value: int | str) -> None:
        with pytest.raises(ValueError, match="is not a size such as 256M"):
            parse_size(value)

    @pytest.mark.parametrize(
        ("expected", "size"),
        [("0 B", 0), ("1023 B", 1023), ("1 KiB", KiB), ("1.5 KiB", 1536), ("256 MiB", 256 * MiB), ("4 GiB", 4 * GiB)],
    )
    def test_a_size_is_shown(self, expected: str, size: int) -> None:
        assert expected == format_size(size)

    @given(st.integers(1, 1 << 40))
    def test_what_is_shown_can_be_typed_and_means_about_the_same(self, size: int) -> None:
        assert abs(parse_size(format_size(size)) - size) <= 0.06 * size


class TestDurations:
    @pytest.mark.parametrize(
        ("expected", "value"),
        [
            (1.0, 1000),
            (0.0005, 0.5),
            (1.0, "1000"),
            (90.0, "90s"),
            (600.0, "10m"),
            (7200.0, "2h"),
            (86_400.0, "1d"),
            (0.25, "250 ms"),
            (1.5, "1.5s"),
        ],
    )
    def test_a_duration_is_read_and_a_bare_number_is_milliseconds(self, expected: float, value: float | str) -> None:
        assert expected == parse_duration(value)

    @pytest.mark.parametrize(
        "value",
        [
            "",
            "s",
            "10 fortnights",
            0,
            -1,
            "-1s",
            "nan",
            "inf",
            float("nan"),
            float("inf"),
            True,
            10**400,
            "9" * 400 + "s",
        ],
    )
    def test_what_is_no_duration_is_refused(self, value: float | str) -> None:
        with pytest.raises(ValueError, match="is not a duration"):
            parse_duration(value)

    @pytest.mark.parametrize(
        ("expected", "seconds"),
        [("450 ms", 0.45), ("1 s", 1), ("1.5 s", 1.5), ("90 s", 90), ("10 min", 600), ("2 h", 7200), ("61 s", 61)],
    )
    def test_a_duration_is_shown(self, expected: str, seconds: float) -> None:
        assert expected == format_duration(seconds)


class TestHidden:
    @pytest.mark.parametrize(
        "name",
        [
            ".sage",
            ".env",
            ".env.local",
            ".netrc",
            ".npmrc",
            ".pypirc",
            "a.pem",
            "server.key",
            "id_rsa",
            "id_ed25519.pub",
        ],
    )
    def test_names_of_secrets_are_hidden(self, name: str) -> None:
        assert is_hidden(name)

    @pytest.mark.parametrize("name", ["env", ".git", "key", "a.pem.txt", "grid_x", "README.md"])
    def test_other_names_are_shown(self, name: str) -> None:
        assert not is_hidden(name)

    @pytest.mark.parametrize(
        "path", [".git/config", "a/.git/config", ".git/modules/m/config", ".git/worktrees/w/config.worktree"]
    )
    def test_the_configurations_of_git_are_known(self, path: str) -> None:
        assert is_git_config(path.split("/"))

    @pytest.mark.parametrize("path", ["config", "git/config", ".git/HEAD", "config/.git", ""])
    def test_other_files_are_not_taken_for_one(self, path: str) -> None:
        assert not is_git_config(path.split("/"))


class TestProtected:
    @pytest.mark.parametrize("name", [name for name in PROTECTED_NAMES if "*" not in name])
    def test_every_name_is_protected_at_any_depth_in_any_case(self, name: str) -> None:
        parts = name.split("/")

        assert is_protected(parts)
        assert is_protected(["a", "b", *parts, "c"])
        assert is_protected([part.upper() for part in parts])

    @pytest.mark.parametrize("name", [".env.local", ".yarnrc.yml", "x.pth", "AGENTS.md", "CLAUDE.md", ".GIT"])
    def test_patterns_and_capitals_are_met(self, name: str) -> None:
        assert is_protected([name])

    @pytest.mark.parametrize(
        "name",
        [".g\u200cit", ".git\u200b", ".g\u00adit", ".gi\ufe0ft", ".git.", ".git ", "conftest.py. .", "\ufb01le.pth"],
    )
    def test_a_name_that_a_file_system_takes_for_a_protected_one_is_one(self, name: str) -> None:
        assert is_protected([name])

    @pytest.mark.parametrize(
        "path", ["git", "src", ".github", "workflows", ".github/x/workflows", "conftest.py.txt", "a.pth.txt", ".", ".."]
    )
    def test_other_names_are_not(self, path: str) -> None:
        assert not is_protected(path.split("/"))

    def test_a_name_that_was_taken_off_the_list_is_spared_and_no_other(self) -> None:
        assert not is_protected(["a", "Conftest.py"], ["conftest.py"])
        assert not is_protected([".github", "workflows", "ci.yml"], [".github/workflows"])
        assert is_protected(["conftest.py", "x.pth"], ["conftest.py"])
        assert is_protected([".env.prod"], [".env"])

    @given(st.lists(NAMES, max_size=4), st.lists(NAMES, max_size=3))
    def test_taking_names_off_never_protects_more(self, parts: list[str], spared: list[str]) -> None:
        assert is_protected(parts) or not is_protected(parts, spared)

    @given(NAMES)
    def test_folding_twice_is_folding_once(self, name: str) -> None:
        assert fold(name) == fold(fold(name))

    @given(NAMES)
    def test_however_a_name_is_spelled_it_folds_alike(self, name: str) -> None:
        assert fold(name) == fold(unicodedata.normalize("NFD", name))
        assert fold(name) == fold(unicodedata.normalize("NFC", name))
        assert fold(name) == fold(name.casefold())

    def test_the_lists_are_written_folded(self) -> None:
        assert [name for name in PROTECTED_NAMES if name != fold(name)] == []
        assert HIDDEN_NAMES[0] == ".sage"


@pytest.mark.parametrize(
    "name", ["Makefile", "package.json", "build.sh", "test_x.py", "x_test.py", "Dockerfile", "CMakeLists.txt"]
)
def test_code_that_the_user_will_run_is_known(name: str) -> None:
    assert runs_later(name)
    assert not runs_later(f"{name}.txt.md")
