"""Caches: keys and values of the sequences under way, a KVCache for each layer and micro-batch.

They stay on the device, or wait in its host's memory for their turn (Sheng et al. 2023, "FlexGen", arXiv
2303.06865, algorithm 1): then one is on its way to the device while the one before it is in use and the one
before that is on its way back.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TypeAlias

import jax
from jax.sharding import Sharding

from endor_jax.models import KVCache

Place: TypeAlias = tuple[int, int]
"""A layer and a micro-batch."""

ON_DEVICE = 3
"""Caches of the host tier that are on the device at once: arriving, in use, leaving."""


class Caches:
    """One KVCache per layer and micro-batch, each of `rows` sequences; sequence i is row i % rows of
    micro-batch i // rows.

    `take` one, use it up, `give` what has become of it, in any order of places. device: where they are for
    that. waiting: in host memory, where they are moved to and fro; None where they stay on the device.
    """

    def __init__(
        self,
        new: Callable[[], KVCache],
        *,
        layers: int,
        micro_batches: int,
        device: Sharding,
        waiting: Sharding | None,
    ):
        self._device, self._host = device, waiting
        self._waiting: dict[Place, KVCache] = {}
        self._arriving: dict[Place, KVCache] = {}
        self._leaving: deque[KVCache] = deque()
        for layer in range(layers):
            for micro_batch in range(micro_batches):
                self.give((layer, micro_batch), new())
        self.rows = self._waiting[0, 0].keys.shape[0]

    def take(self, place: Place, *, then: Place | None = None) -> KVCache:
        """The cache of a place on the device; a step may be given it for good.

        then: the place that is taken next, whose cache sets out now.
        """
        if self._host is None:
            return self._waiting.pop(place)
        cache = self._arriving.pop(place) if place in self._arriving else self._fetch(place)
        if then is not None:
            while len(self._leaving) > ON_DEVICE - 2:
                jax.block_until_ready(self._leaving.popleft())
            self._arriving[then] = self._fetch(then)
        return cache

    def give(self, place: Place, cache: KVCache) -> None:
        """Keeps the new cache of a place."""
        if self._host is None:
            self._waiting[place] = cache
            return
        self._waiting[place] = jax.device_put(cache, self._host)
        self._leaving.append(self._waiting[place])
        while len(self._leaving) > ON_DEVICE - 1:
            jax.block_until_ready(self._leaving.popleft())

    def _fetch(self, place: Place) -> KVCache:
        return jax.device_put(self._waiting.pop(place), self._device)
