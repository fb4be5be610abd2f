"""What is a secret by its shape, and what is next to one. Samples are the vendors' own, or made after their word.

They are put together here, so that no scanner of repositories takes this file for a leak.
"""

from __future__ import annotations

import re
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage_sandbox.results.scrub import Scrubber
from sage_sandbox.results.shapes import SHAPES, fold

HEX40 = "16C7e42F292c6912E7710c838347Ae178B4a"
JWT = (
    "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9"
    ".eyJzdWIiOiIxMjM0NTY3ODkwIiwibmFtZSI6IkpvaG4gRG9lIiwiaWF0IjoxNTE2MjM5MDIyfQ"
    ".SflKxwRJSMeKKF2QT4fwpMeJf36POk6yJV_adQssw5c"
)
BODY = "MC4CAQAwBQYDK2VwBCIEIHcHbQpzGKV9PBbBclGyZkXfTC+H68CZKrF3+6UduSwq"


def pem(kind: str, body: str = BODY) -> str:
    return f"-----BEGIN {kind}-----\n{body}\n-----END {kind}-----"


TOKENS = [
    ("aws-key", "AKIA" + "IOSFODNN7EXAMPLE"),
    ("aws-key", "ASIA" + "IOSFODNN7EXAMPLE"),
    *(("github-token", f"gh{kind}_" + HEX40) for kind in "pousr"),
    ("github-token", "ghs_" + "1234567_" + JWT),
    ("github-token", "github_pat_" + "11ABCDEFG0" + "abcdefABCDEF" + "_" + "Z9" * 29),
    ("gitlab-token", "glpat-" + "kSaPeOD_-T0JxMi3p28B"),
    ("gitlab-token", "glpat-" + "Zm9vYmFyYmF6cXV4MTIzNDU2Nzg5MGFi" + ".01.120w1x2y3"),
    *(
        ("gitlab-token", f"gl{kind}-" + "kSaPeOD_-T0JxMi3p28B")
        for kind in ("dt", "rt", "rtr", "ptt", "ft", "imt", "oas")
    ),
    ("gitlab-token", "glcbt-" + JWT),
    ("atlassian-token", "ATATT3" + "xFfGF0" + "aB3_-=" * 31),
    ("atlassian-token", "ATCTT3" + "xFfGF0" + "aB3_-=" * 31),
    ("atlassian-token", "ATBB" + "aB3" * 10),
    ("slack-token", "xapp-" + "1-A0123456789-1234567890123-" + "a1b2" * 16),
    ("slack-token", "xoxb-" + "17653672481-19874698323-pdFZKVeTuE8sk7oOcHrzqqgy"),
    ("slack-token", "xoxp-" + "123-456-789-abcdef0123456789"),
    ("stripe-key", "sk_live_" + "4eC39HqLyjWDarjtT1zdp7dc"),
    ("stripe-key", "rk_live_" + "4eC39HqLyjWDarjtT1zdp7dc"),
    ("anthropic-key", "sk-ant-" + "api03-" + "aB3_-" * 18 + "AA"),
    ("openai-key", "sk-" + "aB3" * 16),
    ("openai-key", "sk-proj-" + "aB3_-" * 20 + "T3BlbkFJ" + "x9" * 20),
    ("google-key", "AIza" + "SyDaGmWKa4JsXZ-HjGw7ISLn_3namBGewQe"),
    ("google-token", "ya29." + "aB3_-" * 30),
    ("google-token", "GOCSPX-" + "aB3_-7Q" * 4),
    ("huggingface-token", "hf_" + "aBcDeFgHiJkLmNoPqRsTuVwXyZaBcDeFgH"),
    ("groq-key", "gsk_" + "aB3x" * 13),
    ("xai-key", "xai-" + "aB3x" * 20),
    ("replicate-key", "r8_" + "aB3" * 12 + "x"),
    ("perplexity-key", "pplx-" + "aB3x" * 12),
    ("nvidia-key", "nvapi-" + "aB3_" * 16),
    ("digitalocean-token", "dop_v1_" + "0a1b" * 16),
    ("aws-key", "ABSK" + "QmVkcm9ja0FQSUtleS1" + "aB3/" * 28 + "="),
    ("aws-key", "bedrock-api-key-" + "YmVkcm9jay5hbWF6b25hd3MuY29t"),
    ("aws-key", "ABIA" + "IOSFODNN7EXAMPLE"),
    ("aws-key", "ACCA" + "IOSFODNN7EXAMPLE"),
    ("azure-secret", "aB.8" + "Q~" + "aB3_-" * 6 + "xyzA"),
    ("npm-token", "npm_" + "aB3" * 12),
    ("pypi-token", "pypi-" + "AgEIcHlwaS5vcmc" + "CJGZkYWI" * 15),
    ("jwt", JWT),
    ("private-key", pem("PRIVATE KEY")),
    ("private-key", pem("RSA PRIVATE KEY", "Proc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00AA\n\n" + BODY)),
    ("private-key", pem("OPENSSH PRIVATE KEY")),
    ("private-key", pem("PGP PRIVATE KEY BLOCK", "Version: GnuPG v2\n\n" + BODY)),
]

IN_TEXT = [
    ("url-credentials", "https://{user:password}@example.org/path"),
    ("url-credentials", "postgres://{app:p%40ss}@db.internal:5432/app"),
    ("url-credentials", "redis://{:sesame}@localhost"),
    ("url-credentials", "git clone https://{0123456789abcdef:}@example.org/x.git"),
    ("authorization", "Authorization: Basic {QWxhZGRpbjpvcGVuIHNlc2FtZQ==}"),
    ("authorization", "authorization: Bearer {mF_9.B5f-4.1JqM}"),
    ("authorization", "curl -H 'Authorization: token {0123456789}' https://example.org"),
    ("authorization", '{{"Proxy-Authorization": "Basic {dGVzdDoxMjPCow==}"}}'),
    ("named-secret", "password={hunter2hunter2}"),
    ("named-secret", "DB_PASSWORD: {hunter2-hunter2}"),
    ("named-secret", 'password: "{correcthorse}"'),
    ("named-secret", "mysql_passwd = '{abc12345}'"),
    ("named-secret", "export CLIENT_SECRET={abcdefgh12}; ls"),
    ("named-secret", "https://example.org/?access_token={abc12345678}&x=1"),
    ("named-secret", '{{"x-api-key": "{0123456789}"}}'),
    ("named-secret", "apikey := `{0123456789}`"),
    ("named-secret", "aws_secret_access_key = {wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY}"),
    ("named-secret", r"{{\"token\": \"{abc12345678}\"}}"),
    ("named-secret", "(token={abcdef123456})"),
    (
        "named-secret",
        "DefaultEndpointsProtocol=https;AccountName=x;AccountKey={" + "aB3/" * 21 + "aB==};EndpointSuffix=y",
    ),
    ("named-secret", "Endpoint=sb://x.example.net/;SharedAccessKeyName=all;SharedAccessKey={" + "aB3/" * 10 + "aB8=}"),
    ("named-secret", "Set-Cookie: session_token={0123456789abcdef}; Path=/"),
]

HARMLESS = [
    "AKIA" + "IOSFODNN7EXAMPL",
    "AKIA" + "IOSFODNN7EXAMPLEX",
    "xAKIA" + "IOSFODNN7EXAMPLE",
    "ghp_" + HEX40[:-1],
    "glpat-" + "kSaPeOD_-T0JxMi3p28",
    "glide-" + "kSaPeOD_-T0JxMi3p28B",
    "glrt-short",
    "ATBB" + "aB3" * 9,
    "hf_" + "aBcDeFgHiJkLmNoPqRsTuVwXyZaBcDeFg",
    "hf_hub_download_of_something_with_a_long_name",
    "shelf_" + "aBcDeFgHiJkLmNoPqRsTuVwXyZaBcDeFgH",
    "gsk_" + "aB3x" * 12 + "aB3",
    "ya29.short",
    "dop_v1_" + "0a1b" * 15 + "xyz0",
    "bedrock-api-key-short",
    "aB.xQ~" + "aB3_-" * 6 + "xyzA",
    "aB.8Q~" + "aB3_-" * 6,
    "accesskey=s",
    "xoxb-short",
    "sk_test_" + "4eC39HqLyjWDarjtT1zdp7dc",
    "sk-toggleable__label-arrow-content",
    "task-0123456789abcdefghijklmnop",
    "AIza" + "tooShort",
    "npm_config_registry_and_more_of_the_same_kind",
    "pypi-mirror",
    ".".join(JWT.split(".")[:2]) + ".",
    "-----BEGIN CERTIFICATE-----\n" + BODY + "\n-----END CERTIFICATE-----",
    "-----BEGIN PUBLIC KEY-----\n" + BODY + "\n-----END PUBLIC KEY-----",
    "https://example.org:8080/a@b",
    "http://[::1]:80/@",
    "ssh://git@example.org/x.git",
    "mailto://a b:c@d",
    "Authorization: required for all",
    "the password is long",
    "password: secretly",
    "unexpected token: identifier, expected expression",
    '"token": "identifier"',
    "password=short",
    "password=${DB_PASSWORD}",
    "password=$(pass show example)",
    "PASSWORD=$DB_PASSWORD",
    "password: {{ vault.password }}",
    "password=%(password)s",
    'api_key="<your-api-key>"',
    "token: ****************",
    "secret=xxxxxxxxxxxxxxxx",
    "token=................",
    "token = get_token(request)",
    'password = os.environ["DB_PASSWORD"]',
    "self.password = config.password",
    "max_tokens=1234567890",
    "nextPageToken: abc123456789",
    "page_token=abc123456789",
    "continuation-token: abc123456789",
    "tokenizer=bert-base-uncased",
    "secret_name: my-secret-name",
]


@pytest.mark.parametrize(("name", "token"), TOKENS, ids=[token[:20] for _, token in TOKENS])
@pytest.mark.parametrize("around", ["{}", "a {} b", "x='{}'", "({}).", "\\n{}\\n", "q%3D{}&"], ids=repr)
def test_a_token_is_replaced_wherever_it_stands(name: str, token: str, around: str) -> None:
    if name == "private-key" and "\\n" in around:
        token = token.replace("\n", "\\n")
    text, hits = Scrubber().text(around.format(token))
    end = "" if token.startswith("ghs_") and around.endswith(").") else around.partition("{}")[2]

    assert text.startswith(around.partition("{}")[0] + f"[secret:{name}]" + end[:1])
    assert (name,) == hits.names
    assert token[8:] not in text


@pytest.mark.parametrize(("name", "text"), IN_TEXT, ids=[text[:30] for _, text in IN_TEXT])
def test_what_a_name_or_a_header_says_is_replaced_and_no_more(name: str, text: str) -> None:
    plain = text.replace("{{", "<<").replace("}}", ">>")
    secret = re.search("{(.*?)}", plain)
    assert secret is not None
    said = plain.replace("<<", "{").replace(">>", "}")
    before, after = (part.replace("<<", "{").replace(">>", "}") for part in plain.split(secret[0]))
    clean, hits = Scrubber().text(before + secret[1] + after)

    assert said != clean
    assert f"{before}[secret:{name}]{after}" == clean
    assert (name,) == hits.names


@pytest.mark.parametrize("text", HARMLESS, ids=[text[:30] for text in HARMLESS])
def test_what_is_next_to_a_secret_is_left(text: str) -> None:
    clean, hits = Scrubber().text(text)

    assert text is clean
    assert not hits


@pytest.mark.parametrize(
    ("name", "prefix", "alphabet", "least"),
    [
        ("aws-key", "AKIA", string.ascii_uppercase + string.digits, 16),
        ("github-token", "ghp_", string.ascii_letters + string.digits, 36),
        ("gitlab-token", "glpat-", string.ascii_letters + string.digits + "_-", 20),
        ("slack-token", "xoxb-", string.digits + "-", 10),
        ("stripe-key", "sk_live_", string.ascii_letters + string.digits, 16),
        ("anthropic-key", "sk-ant-", string.ascii_letters + string.digits + "_-", 20),
        ("google-key", "AIza", string.ascii_letters + string.digits + "_-", 35),
        ("npm-token", "npm_", string.ascii_letters + string.digits, 36),
        ("huggingface-token", "hf_", string.ascii_letters + string.digits, 34),
        ("groq-key", "gsk_", string.ascii_letters + string.digits, 52),
        ("xai-key", "xai-", string.ascii_letters + string.digits, 80),
        ("replicate-key", "r8_", string.ascii_letters + string.digits, 37),
        ("perplexity-key", "pplx-", string.ascii_letters + string.digits, 48),
        ("google-token", "GOCSPX-", string.ascii_letters + string.digits + "_-", 28),
        ("digitalocean-token", "dop_v1_", "0123456789abcdef", 64),
        ("atlassian-token", "ATBB", string.ascii_letters + string.digits, 28),
    ],
)
@given(data=st.data())
def test_a_token_has_its_length_and_a_shorter_one_is_none(
    name: str, prefix: str, alphabet: str, least: int, data: st.DataObject
) -> None:
    token = prefix + data.draw(st.text(alphabet, min_size=least, max_size=least))

    assert f"[secret:{name}]" == Scrubber().text(token)[0]
    assert token[:-1] == Scrubber().text(token[:-1])[0]


def test_a_key_that_was_cut_off_is_taken_out_as_far_as_it_is_there() -> None:
    scrub = Scrubber().text
    begin, end = "-----BEGIN PRIVATE KEY-----", "-----END PRIVATE KEY-----"

    assert "x [secret:private-key]" == scrub(f"x {begin}\n{BODY}\n{BODY[:30]}")[0]
    assert "[secret:private-key]\nok" == scrub(f"{BODY[20:]}\n{end}\nok")[0]
    assert "[secret:private-key][secret:private-key]!" == scrub(f"{begin}\n{BODY}\n{begin}\n{BODY}\n{end}!")[0]
    assert f"not so: {end}" == scrub(f"not so: {end}")[0]


@given(data=st.data())
def test_a_character_of_another_alphabet_makes_it_none(data: st.DataObject) -> None:
    exact = [token for name, token in TOKENS if name in ("groq-key", "xai-key", "npm-token")]
    token = data.draw(st.sampled_from(exact))
    place = data.draw(st.integers(6, len(token) - 1))
    foreign = data.draw(st.sampled_from("-.:/+ é"))
    text = token[:place] + foreign + token[place + 1 :]

    assert text == Scrubber().text(text)[0]


def test_folding_moves_no_character() -> None:
    assert "İa\udc80ß" == fold("İA\udc80ß")


ATTACKS = [
    "eyJ-", "eyJaaaaaaaaa.", "eyJaaaaaaaaa.eyJ", "://", "://a", "://a:", "://a:b", ":\\/\\/a",
    "-----BEGIN PRIVATE KEY-----", "-----BEGIN ", "-----END PRIVATE KEY-----", "-", "password=", "password=password",
    "token\\", "token \t", "token'\\n",
    "secret_", "secret_access_", "api_key:(", "token=a(", "token=a.a.", "token=${", "password=$A", "authorization: ",
    "authorization: bearer ", "Authorization: Basic a,", "sk-", "sk-proj-", "sk-ant-", "AKIA", "AKIAAAAAAAAAAAAAAAAAA",
    "AIza", "ghp_", "ghs_.", "github_pat_", "glpat-", "glpat-aaaaaaaaaaaaaaaaaaaa.aa.", "xoxb-", "sk_live_", "npm_",
    "pypi-", "glcbt-aaaaaaaaaaaaaaaaaaaa.aa.", "ATATT3", "ATBB", "xapp-", "ya29.", "GOCSPX-", "hf_", "gsk_", "xai-",
    "r8_", "pplx-", "nvapi-", "dop_v1_", "ABSK", "ABSKa/", "bedrock-api-key-", "aa.8Q~", "Q~", "accountkey=",
    "access_key:(", "[secret:known]", "[secret:", "\\", "a.", "x", "=", " ", "\n",
]  # fmt: skip


@pytest.mark.parametrize("part", ATTACKS, ids=repr)
@pytest.mark.parametrize("end", ["", "!", "(", '"'], ids=["", "bang", "call", "quote"])
def test_no_pattern_takes_more_than_time_in_proportion(part: str, end: str) -> None:
    """Half a megabyte: with a pattern that scans on from each of its beginnings this takes minutes. It ends at all."""
    gates = " ".join(dict.fromkeys(gate for shape in SHAPES for gate in shape.gates))
    text = "token=" + part * ((1 << 19) // len(part)) + end

    for shape in SHAPES:
        assert sum(1 for _ in shape.find(text)) >= 0
        assert sum(1 for _ in re.finditer(shape.near, text)) >= 0
    assert Scrubber().text(text + gates)[1].count >= 0
