"""What an operation says to the proxy, read strictly, and what is passed on of it. Pure: bytes in, bytes out.

Where RFC 9112 lets a recipient be lenient this one is not: whatever two readers could take for two different requests
is no request. What is passed on is written anew from what was understood, never copied.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from sage_sandbox.frozen import frozen
from sage_sandbox.hosts import Target, normal_host, parse_port

HEAD_MAX: Final = 64 << 10
FIELDS_MAX: Final = 128
END_OF_HEAD: Final = b"\r\n\r\n"

_REQUEST_LINE: Final = re.compile(rb"([A-Z][A-Z-]{0,31}) ([\x21-\x7e]{1,16384}) HTTP/1\.([01])")
_STATUS_LINE: Final = re.compile(rb"HTTP/1\.[01] ([1-5][0-9]{2})(?: [\t\x20-\x7e\x80-\xff]*)?")
_NAME: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE: Final = re.compile(rb"[\t\x20-\x7e\x80-\xff]*")
_LENGTH: Final = re.compile(rb"[0-9]{1,18}")
_CHUNK_SIZE: Final = re.compile(rb"([0-9A-Fa-f]{1,8})\r\n")
_CHUNK_LINE_MAX: Final = 10

_HOP_BY_HOP: Final = frozenset((
    b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"proxy-connection", b"te", b"trailer",
    b"transfer-encoding", b"upgrade",
))  # fmt: skip
"""What concerns this connection only (RFC 9110, 7.6.1, and what clients still send), beside what Connection names."""


class BadRequest(ValueError):
    """What came is no request that is understood: ``status`` is HTTP's number for it."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(status, text)
        self.status = status
        self.text = text


@frozen
class Request:
    """One request: ``path`` is empty for CONNECT, ``fields`` are those that are passed on.

    ``length`` is the size of the body in bytes, None if it comes in chunks.
    """

    method: str
    target: Target
    path: bytes
    version: bytes
    fields: tuple[tuple[bytes, bytes], ...]
    length: int | None

    @property
    def is_tunnel(self) -> bool:
        """Whether bytes are to be passed both ways, unseen."""
        return self.method == "CONNECT"

    def head(self) -> bytes:
        """What the host is sent: one request, and that no other follows."""
        host = str(self.target).removesuffix(":80").encode()
        lines = [b"%b %b HTTP/1.%b" % (self.method.encode(), self.path, self.version), b"Host: " + host]
        lines += [name + b": " + value for name, value in self.fields]
        if self.length is None:
            lines.append(b"Transfer-Encoding: chunked")
        elif self.length:
            lines.append(b"Content-Length: %d" % self.length)
        return b"\r\n".join((*lines, b"Connection: close", b"", b""))


def parse_request(head: bytes) -> Request:
    """The request of a head, which ends before the empty line; BadRequest if it is no plain one."""
    first, *rest = head.split(b"\r\n")
    found = _REQUEST_LINE.fullmatch(first)
    if not found:
        raise BadRequest(400, "the request line is not METHOD TARGET HTTP/1.x")
    method, target, version = found[1].decode(), found[2], found[3]
    fields = _fields(rest)
    if method == "CONNECT":
        if _all(fields, b"content-length") or _all(fields, b"transfer-encoding"):
            raise BadRequest(400, "CONNECT has no body")
        authority = _authority(target.decode())
        # Older clients send none here, others leave out the port.
        _check_host(fields, authority, authority.port, needed=False)
        return Request(method, authority, b"", version, (), 0)
    authority, path = _absolute(target, method)
    _check_host(fields, authority, 80, needed=version == b"1")
    length = _framing(fields, version)
    return Request(method, authority, path, version, tuple(_end_to_end(fields)), length)


def _fields(lines: list[bytes]) -> list[tuple[bytes, bytes]]:
    """Names in lower case and values. A line that begins with a space (obs-fold) has no name before its colon."""
    if len(lines) > FIELDS_MAX:
        raise BadRequest(431, f"more than {FIELDS_MAX} header fields")
    found = []
    for line in lines:
        name, colon, value = line.partition(b":")
        if not colon or not _NAME.fullmatch(name) or not _VALUE.fullmatch(value):
            raise BadRequest(400, "a header field is not NAME: VALUE on one line")
        found.append((name.lower(), value.strip(b" \t")))
    return found


def _all(fields: list[tuple[bytes, bytes]], name: bytes) -> list[bytes]:
    return [value for known, value in fields if known == name]


def _authority(text: str, default_port: int | None = None) -> Target:
    host, colon, port = text.rpartition(":")
    if default_port is not None and (not colon or port.endswith("]")):
        host, port = text, str(default_port)
    try:
        return Target(normal_host(host), parse_port(port))
    except ValueError as error:
        raise BadRequest(400, f"the target is not HOST:PORT: {error}") from error


def _absolute(target: bytes, method: str) -> tuple[Target, bytes]:
    """Authority and path of ``http://HOST[:PORT][/PATH][?QUERY]``."""
    scheme, mark, rest = target.partition(b"://")
    if not mark or scheme.lower() != b"http":
        raise BadRequest(400, "this is a proxy: http:// is forwarded, everything else goes through CONNECT")
    found = re.fullmatch(rb"([^/?#@\\]+)([/?][^#]*)?", rest)
    if not found:
        raise BadRequest(400, "the target is not http://HOST:PORT/PATH")
    path = found[2] or (b"*" if method == "OPTIONS" else b"/")
    return _authority(found[1].decode(), 80), path if path[:1] in b"/*" else b"/" + path


def _check_host(fields: list[tuple[bytes, bytes]], authority: Target, default_port: int, *, needed: bool) -> None:
    hosts = _all(fields, b"host")
    if len(hosts) > 1 or (needed and not hosts):
        raise BadRequest(400, "there is not exactly one Host field")
    for value in hosts:
        if not value.isascii() or _authority(value.decode(), default_port) != authority:
            raise BadRequest(400, "Host is not the host that the request is for")


def _framing(fields: list[tuple[bytes, bytes]], version: bytes) -> int | None:
    """How long the body is: one way to say so, or it is not said."""
    lengths, codings = _all(fields, b"content-length"), _all(fields, b"transfer-encoding")
    if len(lengths) + len(codings) > 1:
        raise BadRequest(400, "the length of the body is said more than once")
    if codings:
        if codings[0].lower() != b"chunked" or version == b"0":
            raise BadRequest(400, "Transfer-Encoding is not chunked, or not in HTTP/1.1")
        return None
    if lengths and not _LENGTH.fullmatch(lengths[0]):
        raise BadRequest(400, "Content-Length is not a number")
    return int(lengths[0]) if lengths else 0


def _end_to_end(fields: list[tuple[bytes, bytes]]) -> Iterator[tuple[bytes, bytes]]:
    named = {name.strip().lower() for value in _all(fields, b"connection") for name in value.split(b",")}
    dropped = _HOP_BY_HOP | named | {b"host", b"content-length"}
    return (field for field in fields if field[0] not in dropped)


class Body:
    """The body of one request on its way: takes what comes, gives what belongs to it, and nothing after its end."""

    def __init__(self, length: int | None) -> None:
        self._chunked = length is None
        self._left = length or 0
        self._held = b""
        self._between = False
        self.complete = length == 0

    def feed(self, data: bytes) -> bytes:
        """What of it is passed on; BadRequest if the chunks are not plain ones."""
        if not self._chunked:
            part = data[: self._left]
            self._left -= len(part)
            self.complete = not self._left
            return part
        self._held += data
        passed = []
        while not self.complete and (part := self._next()):
            passed.append(part)
        return b"".join(passed)

    def end(self) -> None:
        """The operation has hung up; BadRequest unless the body is complete."""
        if not self.complete:
            raise BadRequest(400, "the body has no end")

    def _next(self) -> bytes:
        """The next piece that is understood, or nothing until more has come."""
        if self._left:
            part, self._held = self._held[: self._left], self._held[self._left :]
            self._left -= len(part)
            self._between = not self._left
            return part
        if self._between:
            return self._line_end()
        found = _CHUNK_SIZE.match(self._held)
        if not found:
            if len(self._held) >= _CHUNK_LINE_MAX or not re.fullmatch(rb"[0-9A-Fa-f]{0,8}\r?", self._held):
                raise BadRequest(400, "the size of a chunk is not a plain number")
            return b""
        self._left = int(found[1], 16)
        if self._left:
            self._held = self._held[found.end() :]
            return found[0]
        return self._last(found.end())

    def _line_end(self) -> bytes:
        if len(self._held) < 2 and b"\r\n".startswith(self._held):
            return b""
        if self._held[:2] != b"\r\n":
            raise BadRequest(400, "a chunk does not end where it says")
        self._held, self._between = self._held[2:], False
        return b"\r\n"

    def _last(self, size: int) -> bytes:
        """The end of the body: no trailer fields, for they would come after what they change was read."""
        if len(self._held) < size + 2 and b"\r\n".startswith(self._held[size:]):
            return b""
        if self._held[size : size + 2] != b"\r\n":
            raise BadRequest(400, "fields after the last chunk are not passed on")
        self.complete = True
        return b"0\r\n\r\n"


class Answer:
    """A host's answer on its way back: its head is read once, to say that the connection ends with it."""

    complete = False

    def __init__(self) -> None:
        self._held = b""
        self._passing = False
        self.begun = False
        """Whether anything of it was passed on."""

    def feed(self, data: bytes) -> bytes:
        """What the operation is sent; BadRequest (502) if it is no answer."""
        if self._passing:
            return data
        self._held += data
        passed = b""
        while not self._passing and END_OF_HEAD in self._held:
            head, _, self._held = self._held.partition(END_OF_HEAD)
            lines, interim = _answer_lines(head)
            self._passing = not interim
            passed += b"\r\n".join((*lines, *(() if interim else (b"Connection: close",)), b"", b""))
        if self._passing:
            passed, self._held = passed + self._held, b""
        elif len(self._held) > HEAD_MAX:
            raise BadRequest(502, "the host's answer has no end of its head")
        self.begun = self.begun or bool(passed)
        return passed

    def end(self) -> None:
        """The host has hung up; BadRequest (502) if it had not even begun."""
        if not self.begun:
            raise BadRequest(502, "the host hung up without an answer")


def _answer_lines(head: bytes) -> tuple[list[bytes], bool]:
    """The lines of an answer's head that are passed on, and whether another head follows (1xx)."""
    first, *rest = head.split(b"\r\n")
    found = _STATUS_LINE.fullmatch(first)
    if not found or found[1] == b"101":
        raise BadRequest(502, "the host's answer is not HTTP/1.x, or changes the protocol")
    kept = [line for line in rest if line.partition(b":")[0].lower() not in (b"connection", b"keep-alive", b"upgrade")]
    return [first, *kept], found[1][:1] == b"1"


def reply(status: int, phrase: str, text: str) -> bytes:
    """An answer of the proxy's own, after which it hangs up. The phrase reaches clients that show no body."""
    body = f"sage-sandbox: {text}\n".encode()
    head = f"HTTP/1.1 {status} {phrase}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {len(body)}\r\n"
    return f"{head}Connection: close\r\n\r\n".encode() + body
