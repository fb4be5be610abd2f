"""Frames: what one end packs is what the other end gets, and a stream that stops is an error, never half a frame."""

from __future__ import annotations

import marshal
import os
from _socket import AF_UNIX, SOCK_STREAM, socketpair

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage_sandbox.sandbox.inside import wire

REQUESTS = st.builds(
    wire.PythonRequest,
    code=st.text(),
    file=st.text(),
    files=st.lists(st.tuples(st.text(), st.text())).map(tuple),
    params=st.binary(),
    inputs=st.binary(),
    env=st.lists(st.tuples(st.text(), st.text())).map(tuple),
    result_max=st.integers(0, 1 << 40),
) | st.builds(
    wire.CommandRequest,
    argv=st.lists(st.text()).map(tuple),
    env=st.just(()),
    terminal=st.booleans(),
)
STEPS = st.one_of(
    st.builds(wire.Namespaces, network=st.booleans(), pantry=st.booleans()),
    st.builds(wire.Proc, root=st.text()),
    st.just(wire.Seccomp()),
    st.builds(
        wire.Rlimits, values=st.lists(st.tuples(st.integers(), st.integers())).map(tuple), address_space=st.integers()
    ),
    st.builds(wire.Pivot, root=st.text(), cwd=st.text(), entries=st.lists(st.text()).map(tuple)),
)


@pytest.fixture
def ends():
    one, other = socketpair(AF_UNIX, SOCK_STREAM)
    yield one, other
    one.close()
    other.close()


def body(frame):
    assert len(frame) - wire.LENGTH.size == wire.LENGTH.unpack_from(frame)[0]
    return frame[wire.LENGTH.size :]


@given(REQUESTS)
def test_a_request_arrives_as_it_was_packed(request):
    assert request == wire.unpack_request(body(wire.pack(request)))


@given(st.lists(STEPS))
def test_steps_arrive_in_their_order_and_of_their_kind(plan):
    arrived = wire.unpack_steps(body(wire.pack(*plan)))

    assert tuple(plan) == arrived
    assert [type(step) for step in plan] == [type(step) for step in arrived]


def test_a_frame_with_an_unknown_name_is_no_request():
    with pytest.raises(KeyError):
        wire.unpack_request(marshal.dumps((("Popen", "sh"),)))


def test_every_kind_of_step_can_be_named():
    assert {kind.__name__: kind for kind in wire.Step.__args__} == wire.STEPS


def test_sends_a_kind_and_a_body(ends):
    wire.send(ends[0], wire.VALUE, b"1")

    assert b"\0\0\0\2V1" == ends[1].recv(100)


def test_receives_a_frame_that_comes_in_pieces(ends):
    frame = wire.pack(wire.CommandRequest(("x" * (3 << 20),), (), False))
    pid = os.fork()
    if not pid:
        try:
            ends[0].sendall(frame)
        finally:
            os._exit(0)
    received = wire.receive(ends[1])
    os.waitpid(pid, 0)

    assert body(frame) == received


@pytest.mark.parametrize("sent", [b"", b"\0\0", b"\0\0\0\5abc"])
def test_a_stream_that_ends_within_a_frame_is_an_error(ends, sent):
    ends[0].sendall(sent)
    ends[0].close()

    with pytest.raises(EOFError, match="the other side is gone"):
        wire.receive(ends[1])


def test_a_frame_longer_than_any_is_refused_before_it_is_read(ends):
    ends[0].sendall(wire.LENGTH.pack(wire.DOWN_MAX + 1))

    with pytest.raises(EOFError, match=f"a frame of {wire.DOWN_MAX + 1} bytes"):
        wire.receive(ends[1])


def test_a_descriptor_comes_with_its_frame(ends, tmp_path):
    (tmp_path / "file").write_text("passed")
    fd = os.open(tmp_path / "file", os.O_RDONLY)
    wire.send_descriptor(ends[0], wire.WORK_FOLDER, b"body", fd)
    os.close(fd)
    data, ((_level, _kind, passed),), _flags, _address = ends[1].recvmsg(100, 100)
    arrived = wire._FD.unpack(passed)[0]

    assert b"\0\0\0\5Wbody" == data
    assert b"passed" == os.read(arrived, 10)
    os.close(arrived)
