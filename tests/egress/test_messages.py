"""Requests are read strictly: whatever two readers could take for two requests is none."""

from __future__ import annotations

import re
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage_sandbox.egress.messages import FIELDS_MAX, HEAD_MAX, Answer, BadRequest, Body, parse_request, reply
from sage_sandbox.hosts import Target

GET = b"GET http://example.org/a?b=c HTTP/1.1\r\nHost: example.org"


def test_a_plain_request_is_written_anew():
    request = parse_request(
        b"POST HTTP://Example.ORG:80/a?b=c HTTP/1.1\r\nhOST:  example.org \r\nX-One:\tsome \xc3\xa9 text\r\n"
        b"Connection: close, X-Two\r\nX-Two: dropped\r\nProxy-Authorization: Basic x\r\nProxy-Connection: x\r\n"
        b"Keep-Alive: 1\r\nTE: trailers\r\nTrailer: x\r\nUpgrade: h2c\r\nContent-Length: 3"
    )

    assert (Target("example.org", 80), "POST", 3) == (request.target, request.method, request.length)
    assert not request.is_tunnel
    assert (
        b"POST /a?b=c HTTP/1.1\r\nHost: example.org\r\nx-one: some \xc3\xa9 text\r\nContent-Length: 3\r\n"
        b"Connection: close\r\n\r\n"
    ) == request.head()


@pytest.mark.parametrize(
    ("line", "head"),
    [
        (b"GET http://example.org HTTP/1.1\r\nHost: example.org", b"GET / HTTP/1.1\r\nHost: example.org\r\n"),
        (b"GET http://example.org?q HTTP/1.1\r\nHost: example.org:80", b"GET /?q HTTP/1.1\r\nHost: example.org\r\n"),
        (b"OPTIONS http://h.example HTTP/1.1\r\nHost: h.example", b"OPTIONS * HTTP/1.1\r\nHost: h.example\r\n"),
        (b"GET http://[::1]:8/ HTTP/1.1\r\nHost: [::1]:8", b"GET / HTTP/1.1\r\nHost: [::1]:8\r\n"),
        (b"GET http://[::1]/ HTTP/1.1\r\nHost: [::1]", b"GET / HTTP/1.1\r\nHost: [::1]\r\n"),
        (b"GET http://h.example/ HTTP/1.0", b"GET / HTTP/1.0\r\nHost: h.example\r\n"),
        (
            b"PUT http://h.example/ HTTP/1.1\r\nHost: h.example\r\nTransfer-Encoding: Chunked",
            b"PUT / HTTP/1.1\r\nHost: h.example\r\nTransfer-Encoding: chunked\r\n",
        ),
        (
            b"GET http://h.example/ HTTP/1.1\r\nHost: h.example\r\nContent-Length: 0",
            b"GET / HTTP/1.1\r\nHost: h.example\r\n",
        ),
    ],
)
def test_what_is_passed_on_is_one_request_that_ends_the_connection(line, head):
    assert head + b"Connection: close\r\n\r\n" == parse_request(line).head()


@pytest.mark.parametrize(
    ("head", "target"),
    [
        (b"CONNECT example.org:443 HTTP/1.1\r\nHost: example.org:443", "example.org:443"),
        (b"CONNECT Example.org.:443 HTTP/1.1\r\nHost: example.org", "example.org:443"),
        (b"CONNECT example.org:8443 HTTP/1.0", "example.org:8443"),
        (b"CONNECT [::1]:443 HTTP/1.1\r\nHost: [0:0::1]:443\r\nProxy-Connection: keep-alive", "[::1]:443"),
    ],
)
def test_a_tunnel_is_asked_for_by_its_host(head, target):
    request = parse_request(head)

    assert request.is_tunnel
    assert target == str(request.target)


SMUGGLED = [
    (b"GET http://h.example/ HTTP/1.1\r\nHost: h.example\r\nHost: h.example", "exactly one Host"),
    (b"GET http://h.example/ HTTP/1.1", "exactly one Host"),
    (b"GET http://h.example/ HTTP/1.1\r\nHost: other.example", "Host is not the host"),
    (b"GET http://h.example/ HTTP/1.1\r\nHost: h.example:81", "Host is not the host"),
    (b"GET http://h.example/ HTTP/1.1\r\nHost: h.example, other.example", "the target is not HOST:PORT"),
    (b"GET http://h.example/ HTTP/1.1\r\nHost: \xe4.example", "Host is not the host"),
    (b"GET http://h.example/ HTTP/1.1\r\nHost:", "the target is not HOST:PORT"),
    (b"CONNECT h.example:443 HTTP/1.1\r\nHost: other.example:443", "Host is not the host"),
    (b"CONNECT h.example:443 HTTP/1.1\r\nHost: h.example:80", "Host is not the host"),
    (b"CONNECT h.example:443 HTTP/1.1\r\nContent-Length: 5", "CONNECT has no body"),
    (b"CONNECT h.example:443 HTTP/1.1\r\nTransfer-Encoding: chunked", "CONNECT has no body"),
    (b"CONNECT h.example HTTP/1.1", "the target is not HOST:PORT"),
    (b"CONNECT http://h.example:443 HTTP/1.1", "the target is not HOST:PORT"),
    (b"CONNECT 127.1:443 HTTP/1.1", "the target is not HOST:PORT"),
    (b"CONNECT 0x7f000001:443 HTTP/1.1", "the target is not HOST:PORT"),
    (b"CONNECT h.example:443@x:1 HTTP/1.1", "the target is not HOST:PORT"),
    (b"CONNECT *.example.org:443 HTTP/1.1", "the target is not HOST:PORT"),
    (GET + b"\r\nContent-Length: 5\r\nTransfer-Encoding: chunked", "said more than once"),
    (GET + b"\r\nContent-Length: 5\r\nContent-Length: 5", "said more than once"),
    (GET + b"\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked", "said more than once"),
    (GET + b"\r\nTransfer-Encoding: gzip, chunked", "not chunked"),
    (GET + b"\r\nTransfer-Encoding: xchunked", "not chunked"),
    (GET + b"\r\nTransfer-Encoding: \x0bchunked", "not NAME: VALUE"),
    (GET.replace(b"1.1", b"1.0") + b"\r\nTransfer-Encoding: chunked", "not in HTTP/1.1"),
    (GET + b"\r\nContent-Length: +5", "not a number"),
    (GET + b"\r\nContent-Length: 5, 5", "not a number"),
    (GET + b"\r\nContent-Length: 0x5", "not a number"),
    (GET + b"\r\nContent-Length: 5_0", "not a number"),
    (GET + b"\r\nContent-Length: " + b"9" * 30, "not a number"),
    (GET + b"\r\nContent-Length:", "not a number"),
    (GET + b"\r\nContent-Length : 5", "not NAME: VALUE"),
    (GET + b"\r\n Content-Length: 5", "not NAME: VALUE"),
    (GET + b"\r\nX: a\r\n\tfolded: b", "not NAME: VALUE"),
    (GET + b"\r\nno colon", "not NAME: VALUE"),
    (GET + b"\r\n: x", "not NAME: VALUE"),
    (GET + b"\r\nX: a\nHost: other.example", "not NAME: VALUE"),
    (GET + b"\r\nX: a\rHost: other.example", "not NAME: VALUE"),
    (GET + b"\r\nX: a\0b", "not NAME: VALUE"),
    (GET + b"\r\nX\xa0: a", "not NAME: VALUE"),
    (b"\r\n" + GET, "the request line"),
    (b" " + GET, "the request line"),
    (GET.replace(b" HTTP", b"  HTTP"), "the request line"),
    (GET.replace(b" HTTP", b"\tHTTP"), "the request line"),
    (GET.replace(b"1.1", b"1.2"), "the request line"),
    (GET.replace(b"1.1", b"2.0"), "the request line"),
    (GET.replace(b"GET", b"get"), "the request line"),
    (b"GET http://h.example/", "the request line"),
    (b"GET http://h.example/\xff HTTP/1.1\r\nHost: h.example", "the request line"),
    (b"PRI * HTTP/2.0", "the request line"),
    (b"GET / HTTP/1.1\r\nHost: h.example", "this is a proxy"),
    (b"GET https://h.example/ HTTP/1.1\r\nHost: h.example", "this is a proxy"),
    (b"GET ftp://h.example/ HTTP/1.1\r\nHost: h.example", "this is a proxy"),
    (b"GET http://a@h.example/ HTTP/1.1\r\nHost: h.example", "the target is not http://"),
    (b"GET http://h.example#x@other/ HTTP/1.1\r\nHost: h.example", "the target is not http://"),
    (b"GET http://h.example\\@other/ HTTP/1.1\r\nHost: h.example", "the target is not http://"),
    (b"GET http:///x HTTP/1.1\r\nHost: h.example", "the target is not http://"),
    (b"GET http://h.example:/ HTTP/1.1\r\nHost: h.example", "the target is not HOST:PORT"),
    (b"GET http://h.example:80:81/ HTTP/1.1\r\nHost: h.example", "the target is not HOST:PORT"),
    (b"GET http://h%2eexample/ HTTP/1.1\r\nHost: h.example", "the target is not HOST:PORT"),
    (GET + b"\r\nX: y" * FIELDS_MAX, f"more than {FIELDS_MAX} header fields"),
]


@pytest.mark.parametrize(("head", "said"), SMUGGLED)
def test_what_could_be_read_in_two_ways_is_no_request(head, said):
    with pytest.raises(BadRequest) as caught:
        parse_request(head)

    assert said in caught.value.text
    assert caught.value.status in (400, 431)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_request_or_a_bad_one(data):
    with suppress(BadRequest):
        parse_request(data)


@given(st.binary(max_size=60))
def test_a_field_never_becomes_two_lines_of_what_is_passed_on(value):
    try:
        head = parse_request(GET + b"\r\nX: " + value).head()
    except BadRequest:
        return
    assert 5 == head.count(b"\r\n")
    assert not re.search(rb"(?<!\r)\n|\r(?!\n)", head)


# Bodies.


def feed(body, data, size):
    return b"".join(body.feed(data[start : start + size]) for start in range(0, len(data), size))


@pytest.mark.parametrize("size", [1, 2, 3, 1000])
def test_a_body_ends_where_its_length_says(size):
    body = Body(5)

    assert b"12345" == feed(body, b"12345GET http://other.example/ HTTP/1.1\r\n\r\n", size)
    assert body.complete
    assert Body(0).complete


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_a_body_in_chunks_ends_with_the_last(size):
    body = Body(None)
    chunks = b"5\r\n12345\r\nA\r\n0123456789\r\n0\r\n\r\n"

    assert chunks == feed(body, chunks + b"GET http://other.example/ HTTP/1.1\r\n\r\n", size)
    assert body.complete


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=5), st.integers(1, 50))
def test_chunks_are_passed_on_as_they_are(parts, size):
    body = Body(None)
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"

    assert chunks == feed(body, chunks, size)
    assert body.complete


@pytest.mark.parametrize(
    "chunks",
    [
        b"5;ext=1\r\n12345\r\n", b"+5\r\n12345\r\n", b"0x5\r\n12345\r\n", b" 5\r\n12345\r\n", b"5 \r\n12345\r\n",
        b"5\n12345\n", b"5\r\n123456\r\n", b"5\r\n12345\n\n", b"\r\n", b"123456789\r\n", b"0\r\nX: y\r\n\r\n",
        b"0\r\n\n", b"00000000000000",
    ],
)  # fmt: skip
@pytest.mark.parametrize("size", [1, 1000])
def test_chunks_that_are_not_plain_are_refused(chunks, size):
    body = Body(None)
    with pytest.raises(BadRequest):
        feed(body, chunks, size)


# Answers.


@pytest.mark.parametrize("size", [1, 5, 1000])
def test_an_answer_says_that_the_connection_ends(size):
    answer = Answer()
    data = (
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nConnection: keep-alive\r\nKeep-Alive: timeout=5\r\n"
        b"Content-Length: 4\r\n\r\nbody"
    )

    assert (
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 4\r\nConnection: close\r\n\r\nbody"
    ) == feed(answer, data, size)
    assert answer.begun
    answer.end()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"SSH-2.0-x\r\n\r\n", "is not HTTP/1.x"),
        (b"HTTP/1.1 101 Switching\r\n\r\n", "changes the protocol"),
        (b"HTTP/1.1 200 OK\r\n" + b"x" * (HEAD_MAX + 1), "no end of its head"),
    ],
)
def test_what_is_no_answer_is_not_passed_on(data, said):
    answer = Answer()
    with pytest.raises(BadRequest, match="502") as caught:
        answer.feed(data)

    assert said in caught.value.text
    with pytest.raises(BadRequest, match="without an answer"):
        answer.end()


def test_a_reply_of_ours_names_what_it_is_about():
    head, _, body = reply(403, "Forbidden: x", "x is y\nhint: z").partition(b"\r\n\r\n")

    assert head.startswith(b"HTTP/1.1 403 Forbidden: x\r\n")
    assert b"Connection: close" in head
    assert b"sage-sandbox: x is y\nhint: z\n" == body
    assert b"Content-Length: %d\r\n" % len(body) in head
