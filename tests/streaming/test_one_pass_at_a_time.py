"""A stream runs one pass at a time, and says what ended it."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import endor_jax as endor
from endor_jax.errors import StreamError, UnsupportedError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    endor.save(tmp_path / "x", ({"w": np.full((8, 8), i, np.float32)} for i in range(4)))
    return tmp_path / "x"


def test_pass_within_a_pass_is_refused(path: Path) -> None:
    """Two at once would take each other's records: wrong results without an error."""
    refused: list[Exception] = []

    def attempt() -> None:
        try:
            run(jnp.ones(8))
        except (StreamError, UnsupportedError) as error:
            refused.append(error)

    def layer(params: Any, x: jax.Array, state: Any) -> tuple[jax.Array, Any]:
        other = threading.Thread(target=attempt)
        other.start()
        other.join()
        attempt()  # here the layer is being traced
        return x @ params["w"], state

    with endor.stream(layer, path) as run:
        run(jnp.ones(8))
        assert "one pass at a time" in str(refused[0])
        assert "inside a JAX transformation" in str(refused[1])
        x, _ = run(jnp.ones(8))  # the stream is as good as before
        assert x.shape == (8,)


def test_what_ended_a_stream_is_the_cause_of_later_errors(path: Path) -> None:
    def layer(params: Any, x: jax.Array, state: Any) -> tuple[jax.Array, Any]:
        raise ZeroDivisionError("mine")

    with endor.stream(layer, path) as run:
        with pytest.raises(ZeroDivisionError):
            run(jnp.ones(8))
        with pytest.raises(StreamError) as caught:
            run(jnp.ones(8))
        assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_closed_checkpoint_reads_no_more(path: Path) -> None:
    opened = endor.open(path)
    opened.close()
    with pytest.raises(StreamError, match=r"a read after close"):
        opened.read_tensor("layers.0", "w")
