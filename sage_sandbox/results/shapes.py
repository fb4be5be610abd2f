"""What secrets look like: shapes that hardly anything else has, each with a literal that is in every one of them.

The literals are all that most text is searched for; a pattern runs where one was found. Every pattern takes time in
proportion to the text: what may repeat is bounded, or is consumed whether or not it turns out to be a secret.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import Final, NamedTuple

Span = tuple[int, int]
Find = Callable[[str], Iterable[Span]]


class Shape(NamedTuple):
    """One kind of secret: ``find`` gives where it stands in a text that has one of the ``gates`` in it.

    ``near`` is a pattern that, in JSON text, begins in each string that such a secret is in, or that names it.
    ``any_case``: gates and ``near`` are lower case, and are looked for in whatever case they are written.
    """

    name: str
    gates: tuple[str, ...]
    find: Find
    near: str
    any_case: bool = False


def fold(text: str) -> str:
    """The text in lower case, as far as it is ASCII: no character changes its place, as it may in ``str.lower``."""
    return text.encode("utf-8", "surrogatepass").lower().decode("utf-8", "surrogatepass")


@cache
def compiled(pattern: str) -> re.Pattern[str]:
    """A pattern, compiled when it is first needed."""
    return re.compile(pattern)


def _token(name: str, gates: tuple[str, ...], pattern: str) -> Shape:
    """A token by its pattern, wherever it stands."""
    return Shape(name, gates, lambda text: (match.span() for match in compiled(pattern).finditer(text)), pattern)


def _word(name: str, prefix: str, rest: str) -> Shape:
    r"""A token that begins a word. What follows an escape (``\n``, ``%3D``) does, too: text may be spelled twice.

    The prefix stands first, and what is before it is looked at afterwards: so re searches for a literal, which is
    twenty times as fast.
    """
    begins = rf"(?<![A-Za-z0-9_-]{prefix})|(?<=\\[bfnrt]{prefix})|(?<=%[0-9A-Fa-f]{{2}}{prefix})"
    in_json = rf"{begins}|(?<=\\u[0-9A-Fa-f]{{4}}{prefix})"
    return _token(name, (prefix,), f"{prefix}(?:{begins}){rest}")._replace(near=f"{prefix}(?:{in_json}){rest}")


# -- private keys --------------------------------------------------------------------------------------------------

_EDGE: Final = r"-----(BEGIN|END) [A-Z0-9 ]{0,32}PRIVATE KEY(?: BLOCK)?-----"
_BODY: Final = r"[A-Za-z0-9+/= \t\r\n\\]*+"
_LINE: Final = r"\s*(?:[A-Za-z0-9+/=]*|[A-Za-z-]{4,20}: [^\n]*|-----END [^\n]*)\s*"


def _private_keys(text: str) -> Iterator[Span]:
    """Keys from edge to edge; of one that was cut off, what is there."""
    begun: re.Match[str] | None = None
    for edge in compiled(_EDGE).finditer(text):
        if edge[1] == "END":
            if begun is not None:
                yield begun.start(), edge.end()
            elif _body_end(text, 0) == edge.start():
                yield 0, edge.end()
            begun = None
        else:
            if begun is not None:
                yield begun.start(), _body_end(text, begun.end())
            begun = edge
    if begun is not None:
        yield begun.start(), _body_end(text, begun.end())


def _body_end(text: str, start: int) -> int:
    body = compiled(_BODY).match(text, start)
    assert body is not None
    return body.end()


def leaves_key_open(text: str) -> bool:
    """Whether a private key begins in this text and does not end in it: the next line goes on with it."""
    edges = compiled(_EDGE).findall(text)
    return bool(edges) and edges[-1] == "BEGIN"


def continues_key(line: str) -> bool:
    """Whether this can be one more line of a private key: base64, a header, its end."""
    return compiled(_LINE).fullmatch(line) is not None


# -- what a name or a header says ----------------------------------------------------------------------------------

# ${PASSWORD}, $(pass show x), $PASSWORD, {{ password }}, %(password)s, <password>, ******, os.environ: where it comes
# from, or that it was left out.
_REFERENCE: Final = r"\$[{(].*|\$[A-Z_][A-Z0-9_]*|\{\{.*|%\(.*|<.*|\*+|x+|X+|\.+|[A-Za-z_]+(?:\.[A-Za-z_]+)+"
# What is handed back to get the next page is no secret, and taking it away would break whoever pages.
_PAGING: Final = "".join(f"(?<!{word}token)(?<!{word}[_-]token)" for word in ("page", "next", "continuation", "sync"))


class _Name(NamedTuple):
    """What the name of a secret ends in (a lower case pattern), and which values under it are none."""

    pattern: str
    gates: tuple[str, ...]
    spared: str = f"(?s:{_REFERENCE})"


_NAMES: Final = (
    _Name("password", ("password",)),
    _Name("passwd", ("passwd",)),
    _Name("passphrase", ("passphrase",)),
    _Name("secret(?:[_-]?(?:access[_-]?)?key)?", ("secret",)),
    # A word is a token of a language ("unexpected token: identifier").
    _Name(f"token{_PAGING}", ("token",), f"(?s:{_REFERENCE}|[A-Za-z]{{8,15}})"),
    _Name("api[_-]?key", ("apikey", "api_key", "api-key")),
    # Azure's connection strings (AccountKey, SharedAccessKey), what SDKs for S3 call theirs.
    _Name("(?:account|access)[_-]?key", ("accountkey", "account_key", "accesskey", "access_key", "access-key")),
)
_ASSIGNED: Final = (
    r"""["'`\\]{0,4}\s{0,4}(?P<by>=>|:=|==?|:)\s{0,4}"""
    r"""(?:\\{0,2}["'`](?P<quoted>[^\s"'`\\]{8,}+)|(?P<bare>[^\s"'`\\,;&|<>(){}\[\]]{8,}+))"""
)
# The same in JSON text, where white space and quotation marks may be escaped; and a key.
_NEAR: Final = r"""["'`\\]{0,8}(?:\s|\\u[0-9a-f]{4}|\\[nrtf]){0,64}+[=:]"""
_SCHEME: Final = "(?:bearer|basic|token|digest|apikey)"
_AUTHORIZATION: Final = (
    r"""authorization["'`\\]{0,4}\s{0,4}[:=]\s{0,4}["'`\\]{0,4}""" + _SCHEME + r"""\s{1,4}([^\s"'`\\,]{4,}+)"""
)


def _named(name: _Name) -> Find:
    """Values that are given to this name, or to one that ends in it."""
    return lambda text: _values(text, name)


def _values(text: str, name: _Name) -> Iterator[Span]:
    for match in compiled(name.pattern + _ASSIGNED).finditer(fold(text)):
        bare = match["bare"] is not None
        start, end = match.span("bare" if bare else "quoted")
        value = text[start:end]
        # A call or a look-up in a program's text; a word after a colon, which is prose.
        if bare and (text[end : end + 1] in ("(", "[") or (match["by"] == ":" and value.isalpha())):
            continue
        if not compiled(name.spared).fullmatch(value):
            yield start, end


def _authorized(text: str) -> Iterator[Span]:
    return (match.span(1) for match in compiled(_AUTHORIZATION).finditer(fold(text)))


def is_secret(name: str, value: str) -> bool:
    """Whether a string that stands under this name in a JSON object is a secret by its name."""
    folded = fold(name)
    if folded.endswith("authorization"):
        return compiled(_SCHEME + r"\s+\S{4}").match(fold(value)) is not None
    name_like = next((known for known in _NAMES if compiled(f"{known.pattern}$").search(folded)), None)
    if name_like is None or len(value) < 8 or re.search(r"\s", value):
        return False
    return not compiled(name_like.spared).fullmatch(value)


# -- user and password in a URL ------------------------------------------------------------------------------------

_PART: Final = r"""[^\s/?#@:"'<>\\]"""
_USERINFO: Final = rf"://({_PART}{{0,256}}:{_PART}{{1,256}}|{_PART}{{8,256}}:)@"


def _credentials(text: str) -> Iterator[Span]:
    return (match.span(1) for match in compiled(_USERINFO).finditer(text))


# -- what has its mark in the middle --------------------------------------------------------------------------

_ENTRA: Final = r"Q~(?<=[A-Za-z0-9_~.]{3}\dQ~)[A-Za-z0-9_~.-]{31,34}(?![A-Za-z0-9_~-])"


def _entra_secrets(text: str) -> Iterator[Span]:
    return ((match.start() - 4, match.end()) for match in compiled(_ENTRA).finditer(text))


SHAPES: Final = (
    # RFC 7468 and RFC 1421 (PEM), OpenSSH's PROTOCOL.key, RFC 9580 6.2 (PGP: "PRIVATE KEY BLOCK").
    Shape("private-key", ("PRIVATE KEY",), _private_keys, _EDGE),
    # GitHub Docs, "About authentication to GitHub", token formats; in ghs_ there is a JWT since 2026.
    _token("github-token", ("ghp_", "gho_", "ghu_", "ghr_"), "gh[pour]_[A-Za-z0-9_]{36,}"),
    _token("github-token", ("ghs_",), "ghs_[A-Za-z0-9_.-]{36,}"),
    _token("github-token", ("github_pat_",), "github_pat_[A-Za-z0-9_]{22,}"),
    # GitLab Docs, "Token overview": 20 characters; or a payload, and after dots its length and a checksum. Those of
    # deployment, runners, triggers, feeds, agents, applications and jobs, of which the last may hold a JWT.
    _token(
        "gitlab-token",
        ("glpat-", "gldt-", "glrt-", "glrtr-", "glptt-", "glcbt-", "glft-", "glimt-", "glagent-", "gloas-", "glsoat-"),
        r"gl(?:pat|dt|rtr?|ptt|cbt|ft|imt|agent|oas|soat)-[A-Za-z0-9_-]{20,}(?:\.[A-Za-z0-9_-]{2,}){0,2}",
    ),
    # Atlassian (Bitbucket, Jira): gitleaks, rule "atlassian-api-token"; Bitbucket's app passwords and access tokens.
    _word("atlassian-token", "ATATT3", "[A-Za-z0-9_=-]{60,}"),
    _word("atlassian-token", "ATCTT3", "[A-Za-z0-9_=-]{60,}"),
    _word("atlassian-token", "ATBB", "[A-Za-z0-9]{28,}"),
    # Slack API, "Token types": bot, user, app-level, refresh, session and legacy tokens.
    _token("slack-token", ("xox",), "xox[abeoprs]-[A-Za-z0-9-]{10,}"),
    _word("slack-token", "xapp-", "[A-Za-z0-9-]{20,}"),
    # Stripe Docs, "API keys": secret and restricted keys of the live mode.
    _token("stripe-key", ("sk_live_", "rk_live_"), "[sr]k_live_[A-Za-z0-9]{16,}"),
    # Anthropic API, "Getting started": sk-ant-api03-…, sk-ant-admin01-….
    _word("anthropic-key", "sk-ant-", "[A-Za-z0-9_-]{20,}"),
    # OpenAI API reference, "Authentication": keys of projects, service accounts and admins; and plain ones, as others
    # have them, too. A class in scikit-learn's HTML (sk-toggleable__content) is none.
    _word(
        "openai-key",
        "sk-",
        "(?:(?:proj|svcacct|admin|None|or-v1)-[A-Za-z0-9_-]{20,}|[A-Za-z0-9]{20,}[A-Za-z0-9_-]*)",
    ),
    # Google Cloud, "Manage API keys": AIza and 35 more.
    _word("google-key", "AIza", "[A-Za-z0-9_-]{35,}"),
    # Google, "OAuth 2.0": access tokens and client secrets, as its pages show them.
    _word("google-token", "ya29.", "[A-Za-z0-9_-]{20,}"),
    _word("google-token", "GOCSPX-", "[A-Za-z0-9_-]{28,}"),
    # Hosts of models, as trufflehog (pkg/detectors: huggingface, groq, xai, replicate) and gitleaks (perplexity) have
    # them: what is fixed is the least here.
    _word("huggingface-token", "hf_", "[A-Za-z0-9]{34,}"),
    _word("groq-key", "gsk_", "[A-Za-z0-9]{52,}"),
    _word("xai-key", "xai-", "[A-Za-z0-9_]{80,}"),
    _word("replicate-key", "r8_", "[A-Za-z0-9_-]{37,}"),
    _word("perplexity-key", "pplx-", "[A-Za-z0-9]{48,}"),
    _word("nvidia-key", "nvapi-", "[A-Za-z0-9_-]{64,}"),
    # DigitalOcean, "Personal access tokens": dop_v1_, of applications doo_v1_ and dor_v1_, and 64 hexadecimal digits.
    _token("digitalocean-token", ("dop_v1_", "doo_v1_", "dor_v1_"), "do[por]_v1_[a-f0-9]{64}"),
    # npm Docs, "About access tokens": npm_ and 36 more, of which six are a checksum.
    _token("npm-token", ("npm_",), "npm_[A-Za-z0-9]{36,}"),
    # PyPI, "API tokens": pypi- and a macaroon in base64.
    _token("pypi-token", ("pypi-",), "pypi-[A-Za-z0-9_-]{50,}"),
    # Amazon Bedrock: gitleaks, rules "aws-amazon-bedrock-api-key-long-lived" and "…-short-lived".
    _word("aws-key", "ABSK", "[A-Za-z0-9+/]{109,}={0,2}"),
    _word("aws-key", "bedrock-api-key-", "[A-Za-z0-9+/=_-]{20,}"),
    # Microsoft Entra, client secrets: gitleaks, rule "azure-ad-client-secret".
    Shape("azure-secret", ("Q~",), _entra_secrets, _ENTRA),
    # RFC 7519, RFC 7515 7.1: header, claims, signature. The first two are objects: {" begins as eyJ in base64url.
    _word("jwt", "eyJ", r"[A-Za-z0-9_-]{8,}+\.eyJ[A-Za-z0-9_-]{8,}+\.[A-Za-z0-9_-]{16,}+"),
    # AWS IAM User Guide, "Unique identifiers": AKIA is a long-term access key, ASIA a temporary one, ABIA a bearer
    # token of STS, ACCA a credential for a context; 20 characters.
    # Behind the other tokens: what follows one may have been part of another.
    _word("aws-key", "AKIA", "[A-Z0-9]{16}(?![A-Za-z0-9])"),
    _word("aws-key", "ASIA", "[A-Z0-9]{16}(?![A-Za-z0-9])"),
    _word("aws-key", "ABIA", "[A-Z0-9]{16}(?![A-Za-z0-9])"),
    _word("aws-key", "ACCA", "[A-Z0-9]{16}(?![A-Za-z0-9])"),
    # RFC 3986 3.2.1: userinfo with a password. In JSON text solidi may be escaped.
    Shape("url-credentials", ("://", r":\/\/"), _credentials, r':\\?/\\?/[^\s"/@]*+@'),
    # RFC 9110 11.6.2 (Authorization, Proxy-Authorization), RFC 6750, RFC 7617.
    Shape("authorization", ("authorization",), _authorized, "authorization" + _NEAR, any_case=True),
    # What environments, configurations and requests call it.
    *(Shape("named-secret", name.gates, _named(name), name.pattern + _NEAR, any_case=True) for name in _NAMES),
)
