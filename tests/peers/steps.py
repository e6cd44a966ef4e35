"""One of several processes: steps with a collective over the devices of all, until something happens to it.

Its one argument is JSON: coordinator, processes, index, timeout, and what it does at step 20 (`act`).
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from endor_jax.errors import EndorError
from endor_jax.peers.join import join
from endor_jax.peers.peers import Peers

STEPS, EVENTFUL, ROWS = 40, 20, 64


def say(*words: object) -> None:
    """On stderr: gloo writes on stdout."""
    print(f"{time.time():.3f}", *words, file=sys.stderr, flush=True)


def act(what: str) -> None:
    if what == "raise late":  # when the others have long begun what they do
        time.sleep(1)
    say("act", what)
    if what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif what == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif what == "dawdle":
        time.sleep(60)
    elif what == "hold":  # as in a call of XLA that does not return, and looks at nothing
        time.sleep(1e6)
    elif what in ("raise", "raise late"):
        raise ValueError("a page that cannot be read")


def run(peers: Peers, what: str | None) -> None:
    mesh = Mesh(np.array(jax.devices()), ("device",))

    @jax.jit
    @jax.shard_map(
        mesh=mesh,
        in_specs=(PartitionSpec("device"), PartitionSpec()),
        out_specs=PartitionSpec(),
        check_vma=False,
    )
    def step(rows: jax.Array, x: jax.Array) -> jax.Array:
        return jax.lax.all_gather(jnp.tanh(rows @ x), "device", tiled=True)

    def place(array: np.ndarray, spec: PartitionSpec) -> jax.Array:
        return jax.make_array_from_callback(array.shape, NamedSharding(mesh, spec), lambda at: array[at])

    matrix = np.random.default_rng(0).normal(size=(ROWS, ROWS)).astype(np.float32) / 4
    rows = place(matrix, PartitionSpec("device"))
    x = place(np.ones(ROWS, np.float32), PartitionSpec())
    for i in range(STEPS):
        if i == EVENTFUL and what is not None:
            act(what)
        x = peers.wait(step(rows, x))
    say("result", np.asarray(x).tobytes().hex())


def main() -> None:
    options = json.loads(sys.argv[1])
    try:
        with join(
            options["coordinator"],
            processes=options["processes"],
            index=options["index"],
            timeout_seconds=options["timeout"],
            join_seconds=20,
        ) as peers:
            say("joined")
            peers.agree(options.get("agree", {}))
            run(peers, options.get("act"))
    except EndorError as error:
        say("error", error)
        sys.exit(error.exit_code)
    finally:
        say("threads", [thread.name for thread in threading.enumerate()])


if __name__ == "__main__":
    main()
