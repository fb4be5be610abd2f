from __future__ import annotations

import base64
import json
import os
import pickle
import subprocess
import sys
import urllib.parse
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage_sandbox.outcome import Attempt, Contact, Outcome, Violation
from sage_sandbox.policy import SECRET_NAMES, STREAM_KEPT
from sage_sandbox.results import scrub
from sage_sandbox.results.scrub import NOTHING, Hits, Scrubber, known_values

KNOWN = "hunter2/hunter2"
NPM = "npm_" + "aB3" * 12
BEGIN, END = "-----BEGIN PRIVATE KEY-----", "-----END PRIVATE KEY-----"
LINE = "MC4CAQAwBQYDK2VwBCIEIHcHbQpzGKV9PBbBclGyZkXfTC+H68CZKrF3+6UduSwq"

# What texts are made of to look for what was overlooked: secrets, parts of them, and what may stand between.
FRAGMENTS = [
    KNOWN, NPM, "AKIA" + "IOSFODNN7EXAMPLE", "AIza" + "aB3_-" * 7, "ghp_" + "aB3" * 12, "sk-" + "aB3" * 7,
    "xoxb-" + "1" * 10, "eyJhbGciOiJI." + "eyJzdWIiOiIx." + "SflKxwRJSMeKKF2QT4", BEGIN, END, LINE, "password=",
    "token: ", "https://", "user:sesame@", "Authorization: Basic ", "0123456789", "sesameopen", "[secret:known]",
    "[secret:", "]", "\n", " ", '"', "\\", "\\n", "%3D", "é", "İ", "-", "_", ".", "=", "/", "\udc80", "\0", "${X}", "(",
]  # fmt: skip
TEXTS = st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=3), max_size=12).map("".join)
JSONS: st.SearchStrategy[Any] = st.recursive(
    TEXTS | st.integers() | st.none(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["password", "Authorization", "x", "next_token", KNOWN]), inner, max_size=4)
    ),
    max_leaves=8,
)


def escaped(text: str, every: int) -> str:
    """JSON text in which every so-many-th letter of a string is spelled as an escape."""
    encoded = json.dumps(text)
    return "".join(
        f"\\u{ord(char):04x}" if char.isalpha() and index % every == 0 and "\\" not in encoded else char
        for index, char in enumerate(encoded)
    )


def shape_of(data: Any) -> Any:
    if isinstance(data, list):
        return [shape_of(item) for item in data]
    if isinstance(data, dict):
        return {key: shape_of(value) for key, value in data.items()}
    return str if isinstance(data, str) else data


class TestText:
    def test_a_known_value_is_replaced_and_counted(self) -> None:
        clean, hits = Scrubber([KNOWN]).text(f"a {KNOWN} and {KNOWN}.")

        assert "a [secret:known] and [secret:known]." == clean
        assert (2, ("known", "known")) == (hits.count, hits.names)

    @pytest.mark.parametrize(
        "spelled",
        [
            json.dumps(KNOWN).replace("/", "\\/")[1:-1],
            urllib.parse.quote(KNOWN, safe=""),
            urllib.parse.quote(KNOWN, safe="").lower(),
            base64.b64encode(KNOWN.encode()).decode(),
        ],
    )
    def test_a_known_value_is_replaced_however_it_is_spelled(self, spelled: str) -> None:
        assert "x[secret:known]x" == Scrubber([KNOWN]).text(f"x{spelled}x")[0]

    def test_a_longer_value_goes_before_one_that_is_part_of_it(self) -> None:
        assert "[secret:known]" == Scrubber(["hunter2hunter", "hunter2hunter22"]).text("hunter2hunter22")[0]

    def test_values_that_are_short_are_not_known(self) -> None:
        assert ("1234567", NOTHING) == Scrubber(["1234567", ""]).text("1234567")

    def test_what_has_no_secret_is_the_same_object(self) -> None:
        text = "the token of the month: none, see https://example.org"

        assert text is Scrubber([KNOWN]).text(text)[0]

    def test_several_kinds_are_replaced_side_by_side(self) -> None:
        clean, hits = Scrubber([KNOWN]).text(f"{NPM},{KNOWN} token={NPM}")

        assert "[secret:npm-token],[secret:known] token=[secret:npm-token]" == clean
        assert 3 == hits.count

    @given(TEXTS)
    def test_what_was_scrubbed_has_no_secret_any_more(self, text: str) -> None:
        clean, _ = Scrubber([KNOWN]).text(text)

        assert (clean, NOTHING) == Scrubber([KNOWN]).text(clean)

    @given(TEXTS, TEXTS)
    def test_no_known_value_is_left(self, before: str, after: str) -> None:
        assert KNOWN not in Scrubber([KNOWN]).text(before + KNOWN + after)[0].replace("[secret:known]", "")

    def test_a_value_that_reads_like_a_replacement_ends(self) -> None:
        scrubber = Scrubber(["[secret:known]", "secret:known", "known][secret", "]abcdefgh"])
        clean, hits = scrubber.text("secret:known [secret:known][secret:known]abcdefgh")

        assert "[secret:known] [secret:known][secret:known]abcdefgh" == clean
        assert 1 == hits.count
        assert not scrubber.text(clean)[1]


class TestJson:
    def test_values_are_replaced_and_keys_are_not(self) -> None:
        data = json.dumps({KNOWN: [KNOWN, 1, {"x": f"y{KNOWN}"}]}).encode()
        clean, hits = Scrubber([KNOWN]).json(data)

        assert {KNOWN: ["[secret:known]", 1, {"x": "y[secret:known]"}]} == json.loads(clean)
        assert 2 == hits.count

    def test_all_else_stays_byte_for_byte(self) -> None:
        data = f'{{ "a" : 1.50, "a":"{KNOWN}","b":[1e400,"é\\u00e9"]\n}}'.encode()

        assert data.replace(KNOWN.encode(), b"[secret:known]") == Scrubber([KNOWN]).json(data)[0]

    @pytest.mark.parametrize(
        "data",
        [b"12", b"null", b'{"files": 12}', b'{"token": 5, "x": "y"}', b'{"url": "https://example.org"}', b'"\\u0041"'],
    )
    def test_what_has_no_secret_is_the_same_object(self, data: bytes) -> None:
        clean, hits = Scrubber([KNOWN]).json(data)

        assert data is clean
        assert not hits

    @pytest.mark.parametrize(
        ("key", "value", "clean"),
        [
            ("password", "hunter2hunter2", "[secret:named-secret]"),
            ("dbPassword", "correcthorse", "[secret:named-secret]"),
            ("clientSecret", "abcdefgh12", "[secret:named-secret]"),
            ("api-key", "abcdefgh12", "[secret:named-secret]"),
            ("Authorization", "Bearer abcdefgh12", "[secret:named-secret]"),
            ("password", f"x{KNOWN}x", "[secret:named-secret]"),
            ("password", KNOWN, "[secret:known]"),
            ("password", "short", "short"),
            ("password", "it must have eight letters", "it must have eight letters"),
            ("password", "${DB_PASSWORD}", "${DB_PASSWORD}"),
            ("token", "identifier", "identifier"),
            ("nextPageToken", "abcdefgh12", "abcdefgh12"),
            ("Authorization", "required", "required"),
            ("tokens", "abcdefgh12", "abcdefgh12"),
        ],
    )
    def test_a_value_can_be_a_secret_by_its_key(self, key: str, value: str, clean: str) -> None:
        scrubber = Scrubber([KNOWN])
        scrubbed, _ = scrubber.json(json.dumps({key: value, "y": "z"}).encode())

        assert {key: clean, "y": "z"} == json.loads(scrubbed)
        assert not scrubber.json(scrubbed)[1]

    def test_a_key_names_what_stands_right_behind_it_only(self) -> None:
        data = b'{"password": ["abcdefgh12"], "token": 1, "x": "abcdefgh12", "secret": {"y": "abcdefgh12"}}'

        assert data is Scrubber().json(data)[0]

    def test_a_private_key_may_be_a_list_of_lines(self) -> None:
        lines = [
            "ls",
            BEGIN,
            LINE,
            "",
            "abcd",
            END,
            LINE,
            f"x {BEGIN}",
            "Proc-Type: 4,ENCRYPTED",
            LINE,
            "done, you see",
        ]
        clean, hits = Scrubber().json(json.dumps(lines).encode())
        key = "[secret:private-key]"

        assert ["ls", key, key, key, key, key, LINE, f"x {key}", key, key, "done, you see"] == json.loads(clean)
        assert 2 == hits.count

    def test_lines_of_a_key_may_be_members(self) -> None:
        lines = [{"line": text} for text in (BEGIN, LINE)]
        clean, _ = Scrubber().json(json.dumps(lines).encode())

        assert [{"line": "[secret:private-key]"}] * 2 == json.loads(clean)

    @pytest.mark.parametrize("value", ["éééééééé", '"' * 8, "\\/" * 4])
    def test_a_value_of_nothing_but_what_json_may_escape_is_found(self, value: str) -> None:
        for encoded in (json.dumps([value]), json.dumps([value], ensure_ascii=False)):
            assert b'["[secret:known]"]' == Scrubber([value]).json(encoded.encode())[0]

    @given(st.text("aB3/+-_.$", min_size=8, max_size=20), st.integers(0, 40))
    def test_one_of_many_known_values_is_found_in_little_and_in_much(self, value: str, size: int) -> None:
        others = [f"another value {number:06}" for number in range(20)]
        data = json.dumps(["." * size * size, value]).encode()

        assert data.replace(value.encode(), b"[secret:known]") == Scrubber([*others, value]).json(data)[0]

    @given(TEXTS.filter(lambda text: "\udc80" not in text))
    def test_a_string_is_scrubbed_as_text_is(self, text: str) -> None:
        scrubber = Scrubber([KNOWN])
        expected, hits = scrubber.text(text)
        for encoded in (
            json.dumps([text]),
            json.dumps([text], ensure_ascii=False),
            json.dumps([text]).replace("/", "\\/"),
        ):
            clean, found = scrubber.json(encoded.encode())

            assert [expected] == json.loads(clean)
            assert hits == found

    @given(TEXTS, st.integers(1, 5))
    def test_escapes_hide_nothing(self, text: str, every: int) -> None:
        scrubber = Scrubber([KNOWN])

        assert scrubber.text(text)[0] == json.loads(scrubber.json(escaped(text, every).encode())[0])

    @given(JSONS)
    def test_the_shape_is_kept_and_what_was_scrubbed_has_no_secret(self, data: Any) -> None:
        scrubber = Scrubber([KNOWN])
        clean, _ = scrubber.json(json.dumps(data).encode())

        assert shape_of(data) == shape_of(json.loads(clean))
        assert (clean, NOTHING) == scrubber.json(clean)

    @pytest.mark.parametrize("data", [b'["password": "', b'["\xff ghp_'])
    def test_what_is_no_json_is_refused(self, data: bytes) -> None:
        with pytest.raises(ValueError, match=r"no JSON|utf-8"):
            Scrubber([KNOWN]).json(data + KNOWN.encode())


class TestOutcome:
    def test_everything_it_says_is_scrubbed(self) -> None:
        outcome = Outcome(
            "rejected",
            "error",
            f"no {KNOWN}",
            f"try {KNOWN}",
            result=json.dumps([KNOWN]).encode(),
            stdout=b"\xff" + KNOWN.encode(),
            stderr=f"é {NPM}\n".encode(),
            violations=(Violation(f"read {KNOWN}", f"read:/{KNOWN}"), Violation("plain")),
            contacts=(Contact(KNOWN, 1, "refused", f"no {KNOWN}", f"net:{KNOWN}:1", 1),),
            attempts=(Attempt("rejected", "error", f"no {KNOWN}", 1.0),),
            scrubbed=1,
        )
        clean, hits = Scrubber([KNOWN]).outcome(outcome)

        assert 11 == hits.count
        assert clean == Outcome(
            "rejected",
            "error",
            "no [secret:known]",
            "try [secret:known]",
            result=b'["[secret:known]"]',
            stdout=b"\xff[secret:known]",
            stderr="é [secret:npm-token]\n".encode(),
            violations=(Violation("read [secret:known]", "read:/[secret:known]"), Violation("plain")),
            contacts=(Contact("[secret:known]", 1, "refused", "no [secret:known]", "net:[secret:known]:1", 1),),
            attempts=(Attempt("rejected", "error", "no [secret:known]", 1.0),),
            scrubbed=12,
        )
        assert (clean, NOTHING) == Scrubber([KNOWN]).outcome(clean)

    @pytest.mark.parametrize(
        "outcome",
        [
            Outcome("fulfilled", result=b'{"token": 1}', stdout=b"a password", violations=(Violation("connect"),)),
            Outcome("fulfilled", result=b'{"a": "\\u0041"}', attempts=(Attempt("fulfilled", None, "", 1.0),)),
            Outcome("fulfilled", stdout=b"x" * STREAM_KEPT),
            Outcome("fulfilled"),
        ],
    )
    def test_without_a_secret_it_is_the_same_object(self, outcome: Outcome) -> None:
        assert outcome is Scrubber([KNOWN]).outcome(outcome)[0]

    def test_the_rest_of_a_value_is_taken_out_where_a_stream_was_cut(self) -> None:
        scrubber = Scrubber([KNOWN, "aaaaaaaaaaaa"])
        for rest in (KNOWN[1:], KNOWN[-4:], "aaaa"):
            stdout = (rest + "\n").encode().ljust(STREAM_KEPT, b".")
            clean, hits = scrubber.outcome(Outcome("fulfilled", stdout=stdout))

            assert b"[secret:known]\n.." == clean.stdout[:17]
            assert 1 == hits.count

    @pytest.mark.parametrize(
        "secret", [NPM, f"token: {NPM}", f"Authorization: Bearer {NPM[4:]}", f"https://u:{NPM[4:]}@x"]
    )
    def test_where_a_stream_was_cut_no_part_of_a_token_is_left(self, secret: str) -> None:
        for cut in range(len(secret)):
            tail = f"{secret[cut:]} and more\nthe next line\n".encode()
            clean, _ = Scrubber().outcome(Outcome("fulfilled", stdout=tail.ljust(STREAM_KEPT, b".")))

            assert NPM[-8:].encode() not in clean.stdout
            assert clean.stdout.startswith((b"[secret:npm-token] and more\n", "…\nthe next line\n.".encode()))
            assert clean is Scrubber().outcome(clean)[0]

    def test_where_a_line_goes_on_and_on_its_first_word_goes(self) -> None:
        tail = f'{NPM[9:]}", "x": "{"y" * 5000}'.encode()
        clean, hits = Scrubber().outcome(Outcome("fulfilled", stderr=tail.ljust(STREAM_KEPT, b".")))

        assert clean.stderr.startswith('…", "x": "yyy'.encode())
        assert 0 == hits.count == clean.scrubbed

    def test_where_a_stream_was_cut_in_a_private_key_its_rest_is_taken_out(self) -> None:
        tail = f"{LINE[9:]}\n{LINE}\n{END}\nok\n".encode()
        clean, hits = Scrubber().outcome(Outcome("fulfilled", stdout=tail.ljust(STREAM_KEPT, b".")))

        assert clean.stdout.startswith(b"[secret:private-key]\nok\n.")
        assert 1 == hits.count

    def test_of_what_was_not_cut_an_end_alone_is_no_secret(self) -> None:
        stdout = KNOWN[1:].encode()

        assert stdout == Scrubber([KNOWN]).outcome(Outcome("fulfilled", stdout=stdout))[0].stdout


def test_a_scrubber_can_be_told_more() -> None:
    scrubber = Scrubber([KNOWN])
    wider = scrubber.knowing(["open sesame"])

    assert "[secret:known] [secret:known]" == wider.text(f"{KNOWN} open sesame")[0]
    assert "[secret:known] open sesame" == scrubber.text(f"{KNOWN} open sesame")[0]


def test_a_scrubber_crosses_a_process_border_and_shows_nothing() -> None:
    scrubber = pickle.loads(pickle.dumps(Scrubber([KNOWN]).knowing(["open sesame"])))

    assert "[secret:known] [secret:known]" == scrubber.text(f"{KNOWN} open sesame")[0]
    assert KNOWN not in repr(scrubber)


def test_hits_add_up() -> None:
    assert Hits(("a", "b", "b")) == Hits(("a",)) + Hits(("b", "b")) + NOTHING
    assert [False, True] == [bool(NOTHING), bool(Hits(("a",)))]


class TestKnownValues:
    @pytest.mark.parametrize(
        "name",
        [
            "GITHUB_TOKEN", "TOKEN", "client_secret", "DB_PASSWORD", "PGPASSWORD", "STRIPE_API_KEY", "SSH_PRIVATE_KEY",
            "AWS_SECRET_ACCESS_KEY", "DJANGO_SECRET_KEY", "ANTHROPIC_API_KEY", "SAGE_STATE_KEY",
            "SAGE_STATE_PASSPHRASE",
        ],
    )  # fmt: skip
    def test_a_name_says_that_its_value_is_a_secret(self, name: str) -> None:
        assert ("0123456789",) == known_values({name: "0123456789", "HOME": "/home/somebody"})

    @pytest.mark.parametrize(
        "name",
        ["PATH", "TOKENS", "TOKEN_FILE", "SAGE_STATE_KEY_FILE", "AWS_ACCESS_KEY_ID", "MONKEY", "KEYBOARD", "OLDPWD"],
    )
    def test_other_names_say_nothing(self, name: str) -> None:
        assert () == known_values({name: "0123456789"})

    def test_short_and_blank_values_are_ignored_and_each_is_known_once(self) -> None:
        environ = {"A_TOKEN": "1234567", "B_TOKEN": " " * 9, "C_TOKEN": "12345678", "D_TOKEN": "12345678"}

        assert ("12345678",) == known_values(environ)

    def test_workers_are_not_told_what_opens_the_state(self) -> None:
        environ = {name: f"value of {name}" for name in SECRET_NAMES}

        assert ("value of ANTHROPIC_API_KEY", "value of OPENAI_API_KEY") == known_values(environ, state_keys=False)


def test_loading_it_compiles_nothing() -> None:
    code = (
        "import re, re._compiler as c; made = []; was = c.compile\n"
        "import sage_sandbox.outcome, sage_sandbox.policy, base64, urllib.parse, json, dataclasses, typing, functools\n"
        "c.compile = lambda *a, **k: made.append(a) or was(*a, **k)\n"
        "import sage_sandbox.results.scrub; print(len(made))"
    )
    env = os.environ | {"PYTHONPATH": str(Path(scrub.__file__).parents[2])}
    ran = subprocess.run([sys.executable, "-P", "-c", code], env=env, capture_output=True, text=True, check=True)

    assert "0" == ran.stdout.strip()
