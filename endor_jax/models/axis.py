"""The axis of devices that share every layer: each has some rows of every matrix, and some of the heads.

Inside `jax.shard_map`. What a product gives is gathered, so x is the same everywhere; keys and values stay
where their heads are (Shoeybi et al. 2019, "Megatron-LM", arXiv 1909.08053, cuts every second matrix by
columns and sums; here all are cut by rows, as parts are, so each output is summed on one device).
"""

from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Shaped


@dataclass(frozen=True)
class Axis:
    """A mesh axis: its name, and how many devices it has. Where an argument is `Axis | None`, None means that
    one device has everything."""

    name: str
    size: int


def gather(
    own: Shaped[Array, "*batch rows"], axis: Axis | None, total: int
) -> Shaped[Array, "*batch {total}"]:
    """What all devices have of the last axis, in order. Behind `total` the last ones have padding."""
    if axis is None:
        return own
    return lax.all_gather(own, axis.name, axis=own.ndim - 1, tiled=True)[..., :total]


def own_rows(whole: Shaped[Array, " total"], axis: Axis | None, rows: int) -> Shaped[Array, " {rows}"]:
    """The entries of a vector that go with the `rows` rows which this device has of a matrix."""
    if axis is None:
        return whole
    padded = jnp.pad(whole, (0, axis.size * rows - whole.shape[0]))
    return lax.dynamic_slice_in_dim(padded, lax.axis_index(axis.name) * rows, rows)


@dataclass(frozen=True)
class HeadShare:
    """The heads that each of some devices has: `kv_heads` key-value heads, `group` query heads to each.

    Where there are more devices than key-value heads, `sharing` successive ones have the same, with other
    query heads. What does not divide leaves the last devices less, or nothing, to do.
    """

    kv_heads: int
    group: int
    sharing: int


def head_share(heads: int, kv_heads: int, devices: int) -> HeadShare:
    """How `heads` query heads and `kv_heads` key-value heads are spread over devices."""
    sharing = max(1, devices // kv_heads)
    return HeadShare(
        kv_heads=-(-kv_heads // (devices // sharing)), group=-(-heads // kv_heads // sharing), sharing=sharing
    )


def own_kv_heads(
    whole: Shaped[Array, "batch time kv_heads *rest"], axis: Axis, share: HeadShare
) -> Shaped[Array, "batch time own_kv_heads *rest"]:
    """The key-value heads of this device, out of all; zeros where it has less than its share."""
    missing = axis.size // share.sharing * share.kv_heads - whole.shape[2]
    padded = jnp.pad(whole, [(0, missing if i == 2 else 0) for i in range(whole.ndim)])
    first = lax.axis_index(axis.name) // share.sharing * share.kv_heads
    return lax.dynamic_slice_in_dim(padded, first, share.kv_heads, axis=2)


def own_query_heads(
    whole: Float[Array, "batch time kv_heads group head_dim"], axis: Axis, share: HeadShare
) -> Float[Array, "batch time own_kv_heads own_group head_dim"]:
    """The query heads of this device, out of all; zeros where it has less than its share."""
    own = own_kv_heads(whole, axis, share)
    missing = share.sharing * share.group - own.shape[3]
    padded = jnp.pad(own, ((0, 0), (0, 0), (0, 0), (0, missing), (0, 0)))
    first = lax.axis_index(axis.name) % share.sharing * share.group
    return lax.dynamic_slice_in_dim(padded, first, share.group, axis=3)


def gather_query_heads(
    own: Float[Array, "batch time own_kv_heads own_group head_dim"],
    axis: Axis,
    share: HeadShare,
    *,
    kv_heads: int,
    group: int,
) -> Float[Array, "batch time {kv_heads} {group} head_dim"]:
    """All query heads, from those of every device: the reverse of `own_query_heads`."""
    teams = axis.size // share.sharing
    everyone = lax.all_gather(own, axis.name)[: teams * share.sharing]
    by_team = everyone.reshape(teams, share.sharing, *own.shape)
    ordered = jnp.transpose(by_team, (2, 3, 0, 4, 1, 5, 6))  # batch, time, team, kv head, sharing, group, dim
    batch, time, head_dim = own.shape[0], own.shape[1], own.shape[4]
    joined = ordered.reshape(batch, time, teams * share.kv_heads, share.sharing * share.group, head_dim)
    return joined[:, :, :kv_heads, :group]
