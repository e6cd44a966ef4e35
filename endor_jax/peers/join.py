"""`join`: makes this process one of several that run a model together."""

from __future__ import annotations

import contextlib
import math

import jax

from endor_jax.errors import OptionError, PeerError, UnsupportedError
from endor_jax.peers.ending import Ending
from endor_jax.peers.meeting import Attendance, address_of, bound_host, find, receive_all, url_of
from endor_jax.peers.peers import Peers
from endor_jax.peers.watch import Watch

TIMEOUT_SECONDS = 30.0
"""How long a process may be silent, or let others wait for it."""

JOIN_SECONDS = 120.0
"""How long processes wait for each other at the start."""

HEARTBEAT_FACTOR = 10
"""JAX has a watch of its own, which ends the process by abort(): it must be slower than ours."""


def join(
    coordinator: str,
    *,
    processes: int,
    index: int,
    timeout_seconds: float = TIMEOUT_SECONDS,
    join_seconds: float = JOIN_SECONDS,
) -> Peers:
    """Meets the other processes and makes their devices JAX's; to be called before JAX is used.

    coordinator: "host:port" of process 0, the same for all. Process 0 listens there; JAX's own coordinator
    and the collectives take free ports. Whoever reaches these ports can disturb the run: for trusted
    networks only.

    Raises OptionError for numbers that cannot be, PeerError when the others do not come in join_seconds,
    or were told other numbers or versions, UnsupportedError after JAX was used.
    """
    host, port = address_of(coordinator)
    _check(processes, index, timeout_seconds)
    if jax.distributed.is_initialized():
        raise _used_before("jax.distributed is initialised already")
    own = Attendance(processes, index, timeout_seconds)
    if index == 0:
        lines, jax_port = receive_all(own, host, port, seconds=join_seconds)
    else:
        line, jax_port = find(own, host, port, seconds=join_seconds)
        lines = {0: line}
    watch = Watch(lines, index=index, processes=processes, timeout_seconds=timeout_seconds)
    ending = Ending(lambda: watch.failure is not None, seconds=timeout_seconds)
    peers = Peers(watch, ending, index=index, processes=processes, timeout_seconds=timeout_seconds)
    with contextlib.ExitStack() as undo:
        undo.callback(lambda: None if jax.distributed.is_initialized() else ending.restore())
        undo.push(peers.__exit__)
        bind = url_of(bound_host(host), jax_port)
        _initialise(peers, own, url_of(host, jax_port), bind=bind, join_seconds=join_seconds)
        undo.pop_all()
    return peers


def _initialise(peers: Peers, own: Attendance, address: str, *, bind: str, join_seconds: float) -> None:
    # It only asks the coordinator whether machines are about to be taken away, and logs errors when it ends.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            address,
            own.processes,
            own.index,
            coordinator_bind_address=bind,
            cluster_detection_method="deactivate",
            initialization_timeout=math.ceil(join_seconds),
            heartbeat_timeout_seconds=math.ceil(HEARTBEAT_FACTOR * own.timeout_seconds),
            shutdown_timeout_seconds=math.ceil(own.timeout_seconds),
        )
    except jax.errors.JaxRuntimeError as error:
        explained = peers.explained(error)
        if explained is not error:
            raise explained from error
        raise PeerError(
            f"process {own.index} of {own.processes}, joining JAX's coordinator",
            got=str(error).split("\n")[0],
            expected=f"that all processes reach {address}",
            fix="see whether a firewall closes ports of that machine, and start all again",
        ) from error
    except RuntimeError as error:
        raise _used_before(str(error)) from error


def _used_before(got: str) -> UnsupportedError:
    return UnsupportedError(
        "join", got=got, expected="a process that has not used JAX yet", fix="join before anything else"
    )


def _check(processes: int, index: int, timeout_seconds: float) -> None:
    if processes < 2:
        raise OptionError(
            "processes", got=str(processes), expected="2 or more", fix="leave it out for one process"
        )
    if not 0 <= index < processes:
        fix = "number the processes from 0"
        raise OptionError("process index", got=str(index), expected=f"0 to {processes - 1}", fix=fix)
    if not (math.isfinite(timeout_seconds) and timeout_seconds >= 1):
        raise OptionError(
            "peer timeout",
            got=f"{timeout_seconds:g} seconds",
            expected="1 or more",
            fix=f"say {TIMEOUT_SECONDS:g}",
        )
