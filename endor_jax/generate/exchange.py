"""What pipeline stages tell each other after a tick: x goes to the next one, the last one's results to all.

Bits travel, not numbers, so what arrives is what was given. Both are small beside the weights that a pass
streams; they go piece by piece in arrays of few sizes, so that few programs are compiled and the room that
they take is bounded.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import jax
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Shaped, UInt

from endor_jax.arrays import bits_of
from endor_jax.peers.peers import Peers, wait_with

PIECE_BYTES = 4 << 20
"""Of what one stage sends at a time, if a row is no larger."""
SMALLEST_ROWS = 8
"""Rows of a piece: this, or a power of two above it."""


@dataclass(frozen=True)
class Exchange:
    """The devices of a pipeline: a mesh of two axes, stages and the devices that share the layers of each.

    Every process of the mesh has to call the same methods in the same order, for rows that are equally many.
    peers: those processes, if there are several.
    """

    mesh: Mesh
    peers: Peers | None = None

    def hand_on(
        self, given: Mapping[int, Shaped[np.ndarray, "rows width"]], rows: int, *, like: np.ndarray
    ) -> dict[int, Shaped[np.ndarray, "{rows} width"]]:
        """Of each stage here but the first, what the one before gave: up to `rows` rows, and zeros.

        given: what the stages of this process give on; each may give fewer rows. like: (0, width), in the
        dtype of all.
        """
        received = {
            stage: np.zeros((rows, *like.shape[1:]), like.dtype) for stage in self._stages_here if stage
        }
        for first, size, width in _pieces(rows, like.shape[1] * like.dtype.itemsize):
            words = self._spread({s: bits_of(x[first : first + size]) for s, x in given.items()}, width, like)
            moved = wait_with(self.peers, _shift(words, mesh=self.mesh))
            for stage, whole in received.items():
                bits_of_piece = self._own(moved, stage)[:size]
                whole[first : first + size] = bits_of_piece.view(like.dtype)
        return received

    def tell_all(
        self, said: Shaped[np.ndarray, "rows width"] | None, rows: int, *, like: np.ndarray
    ) -> Shaped[np.ndarray, "{rows} width"]:
        """What the last stage says, in every process. said: None where it is not; like: (0, width)."""
        heard = np.empty((rows, *like.shape[1:]), like.dtype)
        last = self.mesh.devices.shape[0] - 1
        for first, size, width in _pieces(rows, like.shape[1] * like.dtype.itemsize):
            own = {} if said is None else {last: bits_of(said[first : first + size])}
            words = wait_with(self.peers, _sum(self._spread(own, width, like), mesh=self.mesh))
            heard[first : first + size] = np.asarray(words.addressable_data(0))[0, :size].view(like.dtype)
        return heard

    @property
    def _stages_here(self) -> list[int]:
        here = jax.process_index()
        rows = enumerate(self.mesh.devices)
        return [stage for stage, row in rows if any(device.process_index == here for device in row)]

    def _spread(self, own: Mapping[int, np.ndarray], rows: int, like: np.ndarray) -> jax.Array:
        """(stages, rows, width) unsigned integers, of which each stage has its own on all of its devices."""
        bits = bits_of(like)
        shape = (self.mesh.devices.shape[0], rows, *bits.shape[1:])
        sharding = NamedSharding(self.mesh, PartitionSpec(self.mesh.axis_names[0]))
        arrays = []
        for stage in self._stages_here:
            piece = np.zeros((1, *shape[1:]), bits.dtype)
            if stage in own:
                piece[0, : len(own[stage])] = own[stage]
            arrays += [
                jax.device_put(piece, device)
                for device in self.mesh.devices[stage]
                if device.process_index == jax.process_index()
            ]
        return jax.make_array_from_single_device_arrays(shape, sharding, arrays)

    def _own(self, words: jax.Array, stage: int) -> np.ndarray:
        """What a stage of this process has of an array that is spread over stages."""
        row = set(self.mesh.devices[stage])
        return np.asarray(next(s.data for s in words.addressable_shards if s.device in row))[0]


@functools.partial(jax.jit, static_argnames="mesh")
def _shift(words: UInt[Array, "stages rows width"], *, mesh: Mesh) -> UInt[Array, "stages rows width"]:
    """Each stage's words on the next one; the first has zeros."""
    axis, stages = mesh.axis_names[0], mesh.devices.shape[0]

    def shift(own: jax.Array) -> jax.Array:
        return lax.ppermute(own, axis, [(stage, stage + 1) for stage in range(stages - 1)])

    return _over(mesh, shift, PartitionSpec(axis))(words)


@functools.partial(jax.jit, static_argnames="mesh")
def _sum(words: UInt[Array, "stages rows width"], *, mesh: Mesh) -> UInt[Array, "1 rows width"]:
    """The words of the one stage whose are not zero, everywhere."""
    axis = mesh.axis_names[0]
    return _over(mesh, lambda own: lax.psum(own, axis), PartitionSpec())(words)


def _over(
    mesh: Mesh, call: Callable[[jax.Array], jax.Array], gives: PartitionSpec
) -> Callable[..., jax.Array]:
    takes = PartitionSpec(mesh.axis_names[0])
    return jax.shard_map(call, mesh=mesh, in_specs=takes, out_specs=gives, check_vma=False)


def _pieces(rows: int, row_bytes: int) -> list[tuple[int, int, int]]:
    """First row, rows, and rows of the array that carries them, of the pieces of some rows."""
    most = largest_piece(row_bytes)
    return [
        (first, min(most, rows - first), piece_rows(min(most, rows - first)))
        for first in range(0, rows, most)
    ]


def largest_piece(row_bytes: int) -> int:
    """Rows of a piece at most: a power of two, `PIECE_BYTES` or `SMALLEST_ROWS`."""
    return max(SMALLEST_ROWS, 1 << max(0, (PIECE_BYTES // row_bytes).bit_length() - 1))


def piece_rows(rows: int) -> int:
    """The size class that holds some rows."""
    return max(SMALLEST_ROWS, 1 << (rows - 1).bit_length())


def exchanged_bytes(positions: int, width_bytes: int, *, rows: int, row_bytes: int) -> tuple[int, int]:
    """Bytes on each device, and on the host for a stage, that an exchange takes.

    positions, width_bytes: of what goes to the next stage, at most. rows, row_bytes: of what the last one
    says.
    """
    device = max(
        2 * piece_rows(min(count, largest_piece(each))) * each
        for count, each in ((positions, width_bytes), (rows, row_bytes))
    )
    # What goes out and what comes in; what is said, and a piece of it as it is sent.
    return device, 2 * positions * width_bytes + 2 * rows * row_bytes + device
