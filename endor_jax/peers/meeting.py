"""The meeting: process 0 listens at the coordinator's address, the others find it and say who they are.

It comes before `jax.distributed.initialize`, so that wrong numbers and absent processes are errors of ours.
"""

from __future__ import annotations

import contextlib
import select
import socket
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import jax

from endor_jax.errors import OptionError, PeerError
from endor_jax.peers.line import Line, close_all
from endor_jax.version import VERSION

RETRY_SECONDS = 0.2
"""How often a process looks for a coordinator that is not there yet."""

LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Attendance:
    """What a process says when it comes: it must be the same for all, but for `index`."""

    processes: int
    index: int
    timeout_seconds: float
    endor_jax: str = VERSION
    jax: str = jax.__version__


def address_of(coordinator: str) -> tuple[str, int]:
    """Host and port of "host:port" or "[::1]:port". Raises OptionError."""
    host, _, port = coordinator.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise OptionError(
            "coordinator", got=repr(coordinator), expected="HOST:PORT of process 0", fix="say 10.0.0.1:1234"
        )
    return host, int(port)


def url_of(host: str, port: int) -> str:
    """The same as one string."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def bound_host(host: str) -> str:
    """Where process 0 listens: everywhere, for a host's name may lead to another of its addresses inside it;
    on loopback only there."""
    return host if host in LOOPBACK else "::" if socket.has_dualstack_ipv6() else "0.0.0.0"


def _listener(host: str, port: int) -> socket.socket:
    at = bound_host(host)
    try:
        if at == "::":
            return socket.create_server((at, port), family=socket.AF_INET6, dualstack_ipv6=True)
        return socket.create_server((at, port), family=socket.AF_INET6 if ":" in at else socket.AF_INET)
    except OSError as error:
        raise PeerError(
            "process 0, which listens for the others",
            got=f"{url_of(host, port)} cannot be listened at ({error})",
            expected="a free port of this machine",
            fix="say another port to all processes",
        ) from error


def _free_port(host: str) -> int:
    with _listener(host, 0) as listener:
        return listener.getsockname()[1]


def receive_all(own: Attendance, host: str, port: int, *, seconds: float) -> tuple[dict[int, Line], int]:
    """Process 0: the lines to all others, and a port for JAX's own coordinator, which they know too.

    Raises PeerError, here and in all that have come, if one says other numbers or does not come in time.
    """
    came: list[Line] = []
    try:
        with _listener(host, port) as listener:
            lines = _complete(listener, own, came, seconds=seconds)
        jax_port = _free_port(host)
        for line in lines.values():
            line.send({"kind": "welcome", "port": jax_port})
        return lines, jax_port
    except BaseException as error:
        for line in came:
            with contextlib.suppress(OSError):
                line.send({"kind": "refused", "error": _fields(error)})
        close_all(came)
        raise


def _complete(
    listener: socket.socket, own: Attendance, came: list[Line], *, seconds: float
) -> dict[int, Line]:
    """One line per process. came: gets every line, those that left again or are refused among them."""
    lines: dict[int, Line] = {}
    for line, other in _arrivals(listener, time.monotonic() + seconds):
        came.append(line)
        _compare(own, other)
        if other.index in lines and not _gone(lines[other.index]):
            raise _refusal(other.index, "a second process with this index", "one", "number them anew")
        lines[other.index] = line
        if len(lines) == own.processes - 1 and not any(map(_gone, lines.values())):
            return lines
    absent = min(set(range(1, own.processes)) - {i for i in lines if not _gone(lines[i])}, default=1)
    fix = "start it with the same --coordinator, and see whether the others can reach that address"
    raise _refusal(absent, f"no connection in {seconds:g} seconds", "one", fix)


def _arrivals(listener: socket.socket, deadline: float) -> Iterator[tuple[Line, Attendance]]:
    """Those who come until the deadline. What is no process of ours is turned away."""
    while (left := deadline - time.monotonic()) > 0:
        if not select.select([listener], [], [], left)[0]:
            return
        connection, _ = listener.accept()
        line = Line(connection)
        try:
            said = line.receive()[0]["attendance"]
            other = Attendance(**said)
            if not isinstance(other.index, int) or not isinstance(other.processes, int):
                raise TypeError(f"{said}")
        except (OSError, ValueError, LookupError, TypeError):
            connection.close()
            continue
        yield line, other


def _gone(line: Line) -> bool:
    """Whether a process that came has left again: it says nothing before it is welcomed."""
    return bool(select.select([line], [], [], 0)[0])


def _compare(own: Attendance, other: Attendance) -> None:
    wanted, said = asdict(own), asdict(other)
    for name in wanted:
        if name != "index" and wanted[name] != said[name]:
            what = {"timeout_seconds": "--peer-timeout", "processes": "--processes"}.get(
                name, f"version of {name}"
            )
            raise _refusal(
                other.index, f"{what} {said[name]}", f"{wanted[name]} as process 0", "make them equal"
            )
    if not 0 < other.index < own.processes:
        expected = f"1 to {own.processes - 1}"
        raise _refusal(other.index, f"--process-index {other.index}", expected, "number the processes from 0")


def find(own: Attendance, host: str, port: int, *, seconds: float) -> tuple[Line, int]:
    """Any other process: the line to process 0, and the port of JAX's coordinator. Raises PeerError."""
    deadline = time.monotonic() + seconds
    got: object = "no connection"
    while (left := deadline - time.monotonic()) > 0:
        try:
            connection = socket.create_connection((host, port), timeout=left)
        except OSError as error:  # not there yet; a name that nobody knows may be known soon, too
            got = error
            time.sleep(min(RETRY_SECONDS, left))
            continue
        line = Line(connection)
        try:
            line.send({"kind": "hello", "attendance": asdict(own)})
            return line, _welcomed(line, deadline)
        except (OSError, ValueError, LookupError) as error:
            connection.close()
            got = f"a connection, then {error or type(error).__name__}"
            time.sleep(min(RETRY_SECONDS, left))
        except PeerError:
            connection.close()
            raise
    raise PeerError(
        f"process {own.index} of {own.processes}, looking for process 0",
        got=f"{got} for {seconds:g} seconds",
        expected=f"process 0 at {url_of(host, port)}",
        fix="start it, and see whether address, port and firewall are right",
    )


def _welcomed(line: Line, deadline: float) -> int:
    """The port, when all have come."""
    if not select.select([line], [], [], max(0.0, deadline - time.monotonic()))[0]:
        raise TimeoutError("no word that all have come")
    message = line.receive()[0]
    if message["kind"] == "refused":
        raise PeerError(**message["error"])
    return int(message["port"])


def _refusal(process: int, got: str, expected: str, fix: str) -> PeerError:
    return PeerError(f"process {process}", got=got, expected=expected, fix=fix)


def _fields(error: BaseException) -> dict[str, Any]:
    if isinstance(error, PeerError):
        return {"where": error.where, "got": error.got, "expected": error.expected, "fix": error.fix}
    got = f"its own error: {type(error).__name__} {error}".strip()
    return {
        "where": "process 0",
        "got": got,
        "expected": "that it meets the others",
        "fix": "see what it says",
    }
