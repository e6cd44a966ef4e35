"""How processes meet: wrong numbers, absent ones and strangers are one error for all that came."""

from __future__ import annotations

import ctypes
import signal
import socket
from concurrent.futures import ThreadPoolExecutor

import pytest

from endor_jax.errors import OptionError, PeerError, UnsupportedError
from endor_jax.peers.join import join
from endor_jax.peers.line import MOST_BYTES, Line
from endor_jax.peers.meeting import Attendance, address_of, find, receive_all, url_of
from tests.peers.conftest import connected, free_port


def met(*attendances: Attendance, seconds: float = 30.0):
    """What each process has of the meeting: lines and port, or its error."""
    port = free_port()

    def come(own: Attendance):
        try:
            if own.index == 0:
                return receive_all(own, "127.0.0.1", port, seconds=seconds)
            return find(own, "127.0.0.1", port, seconds=seconds)
        except PeerError as error:
            return error

    with ThreadPoolExecutor(len(attendances)) as pool:
        return list(pool.map(come, attendances))


def abort_handler() -> int | None:
    """The address of C's handler for abort(), which is left as it is."""
    set_handler = ctypes.CDLL(None).signal
    set_handler.restype, set_handler.argtypes = ctypes.c_void_p, (ctypes.c_int, ctypes.c_void_p)
    present = set_handler(signal.SIGABRT, None)
    set_handler(signal.SIGABRT, present)
    return present


def closed(*results) -> None:
    for lines, _ in results:
        for line in lines.values() if isinstance(lines, dict) else [lines]:
            line.close()


def test_all_meet_and_learn_of_one_port():
    results = met(*(Attendance(3, i, 30.0) for i in range(3)))
    assert set(results[0][0]) == {1, 2}
    assert len({port for _, port in results}) == 1
    closed(*results)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (Attendance(3, 1, 30.0), "process 1: got --processes 3, expected 2 as process 0"),
        (Attendance(2, 1, 9.0), "process 1: got --peer-timeout 9.0, expected 30.0 as process 0"),
        (Attendance(2, 1, 30.0, jax="0.1"), "process 1: got version of jax 0.1, expected"),
        (Attendance(2, 2, 30.0), "process 2: got --process-index 2, expected 1 to 1"),
    ],
)
def test_other_numbers_are_the_same_error_for_both(other, message):
    first, second = met(Attendance(2, 0, 30.0), other)
    assert str(first) == str(second)
    assert str(first).startswith(message)


def test_two_processes_with_one_index():
    errors = met(Attendance(3, 0, 30.0), Attendance(3, 1, 30.0), Attendance(3, 1, 30.0))
    assert {str(error) for error in errors} == {
        "process 1: got a second process with this index, expected one; number them anew"
    }


def test_one_that_does_not_come():
    errors = met(Attendance(3, 0, 30.0), Attendance(3, 2, 30.0), seconds=1.0)
    assert str(errors[0]).startswith("process 1: got no connection in 1 seconds, expected one; start it with")
    assert isinstance(errors[1], PeerError)


def test_a_coordinator_that_is_not_there():
    (error,) = met(Attendance(2, 1, 30.0), seconds=0.5)
    assert str(error).startswith("process 1 of 2, looking for process 0: got [Errno 111] Connection refused")
    assert "for 0.5 seconds, expected process 0 at 127.0.0.1:" in str(error)


def test_a_port_that_is_taken():
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(PeerError, match="say another port to all processes"),
    ):
        receive_all(Attendance(2, 0, 30.0), "127.0.0.1", taken.getsockname()[1], seconds=1.0)


def test_a_stranger_is_turned_away():
    port = free_port()
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(receive_all, Attendance(2, 0, 30.0), "127.0.0.1", port, seconds=30.0)
        for words in (b"GET / HTTP/1.1\r\n\r\n", b'{"kind": "hello", "attendance": {}}\n', b"[]\n", b""):
            while True:
                try:
                    stranger = socket.create_connection(("127.0.0.1", port))
                    break
                except ConnectionRefusedError:
                    assert not first.done()
            with stranger:
                stranger.sendall(words)
        second = pool.submit(find, Attendance(2, 1, 30.0), "127.0.0.1", port, seconds=30.0)
        closed(first.result(), second.result())


def test_a_line_carries_messages_and_refuses_others():
    here, there = connected()
    line = Line(here)
    there.sendall(b'{"kind": "a"}\n{"kind":')
    assert line.receive() == [{"kind": "a"}]
    there.sendall(b' "b", "x": 1}\n')
    assert line.receive() == [{"kind": "b", "x": 1}]
    there.sendall(b'["kind"]\n')
    with pytest.raises(ValueError, match="none of our messages"):
        line.receive()
    there.close()
    with pytest.raises(OSError, match="closed"):
        line.receive()
    line.close()


def test_a_message_without_end_is_refused():
    here, there = connected()
    line = Line(here)

    def listen() -> None:
        for _ in range(MOST_BYTES // 1000):
            there.sendall(bytes(2000))
            assert line.receive() == []

    with pytest.raises(ValueError, match=f"more than {MOST_BYTES:,} bytes"):
        listen()
    there.close()
    line.close()


def test_addresses():
    assert address_of("10.0.0.1:1234") == ("10.0.0.1", 1234)
    assert address_of("[::1]:99") == ("::1", 99)
    assert (url_of("::1", 99), url_of("host", 1)) == ("[::1]:99", "host:1")
    for wrong in ("host", ":1", "host:", "host:x", "host:70000", "host:0"):
        with pytest.raises(OptionError, match="expected HOST:PORT of process 0"):
            address_of(wrong)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"processes": 1, "index": 0}, "processes: got 1, expected 2 or more"),
        ({"processes": 2, "index": 2}, "process index: got 2, expected 0 to 1"),
        ({"processes": 2, "index": -1}, "process index: got -1"),
        ({"processes": 2, "index": 0, "timeout_seconds": 0.5}, "peer timeout: got 0.5 seconds"),
    ],
)
def test_numbers_that_cannot_be(numbers, message):
    with pytest.raises(OptionError, match=message):
        join("127.0.0.1:1", **numbers)


def test_after_jax_was_used_it_is_too_late():
    import jax

    jax.devices()
    port, before = free_port(), abort_handler()
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(find, Attendance(2, 1, 30.0), "127.0.0.1", port, seconds=30.0)
        with pytest.raises(
            UnsupportedError, match="a process that has not used JAX yet; join before anything"
        ):
            join(f"127.0.0.1:{port}", processes=2, index=0)
        closed((other.result()[0], 0))
    assert abort_handler() == before  # this process ends as it would have
