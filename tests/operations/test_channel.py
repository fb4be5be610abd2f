from __future__ import annotations

import os
import socket

from hypothesis import given
from hypothesis import strategies as st

from sage_sandbox.operations import channel
from sage_sandbox.outcome import Outcome

frames = st.one_of(
    st.builds(channel.Ready, st.none() | st.tuples(st.text(), st.text(), st.text())),
    st.builds(
        channel.Report,
        st.lists(
            st.builds(
                channel.Ended,
                st.integers(1),
                st.builds(Outcome, st.just("fulfilled"), result=st.binary()),
                st.floats(0),
            ),
            max_size=3,
        ).map(tuple),
        st.integers(0),
    ),
    st.builds(channel.Returned, st.lists(st.integers(1)).map(tuple)),
    st.builds(channel.Withdraw, st.lists(st.integers(1)).map(tuple), st.booleans()),
)


@given(st.lists(frames, max_size=5), st.lists(st.integers(1, 60)))
def test_frames_survive_any_cutting_of_the_stream(sent: list[channel.Frame], cuts: list[int]) -> None:
    data, reader, heard = b"".join(map(channel.encode, sent)), channel.Frames(), []
    for cut in cuts:
        heard += reader.feed(data[:cut])
        data = data[cut:]
    heard += reader.feed(data)

    assert heard == sent


def test_hello_says_who_calls() -> None:
    data = channel.hello(b"t" * channel.TOKEN_BYTES, 3)

    assert len(data) == channel.HELLO_BYTES
    assert channel.read_hello(data) == channel.Hello(b"t" * channel.TOKEN_BYTES, 3, os.getpid())


def test_receive_is_empty_when_the_other_side_is_gone() -> None:
    near, far = socket.socketpair()
    with near:
        far.sendall(b"abc")
        far.close()

        assert channel.receive(near) == b"abc"
        assert channel.receive(near) == b""
