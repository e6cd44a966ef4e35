"""A share: which parts of every record the devices of a process have, and what a record is on one of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from endor_jax.errors import InvalidInputError
from endor_jax.format.layout import DenseLayout, FieldLayout, RecordLayout, TensorLayout
from endor_jax.location import Location
from endor_jax.store.manifest import Manifest, Part


@dataclass(frozen=True)
class Share:
    """The parts of the devices `places` out of `count`: each has as many successive parts of every record."""

    count: int = 1
    places: tuple[int, ...] = (0,)

    def parts(self, parts: Sequence[Part]) -> tuple[Part, ...]:
        """Of the parts of a record those in this share, one device's after the other's.

        Each with the buffer that the largest part in its place on any device needs: arrays that are spread
        over devices are equally long on all of them.
        """
        each = len(parts) // self.count
        longest = [max(part.buffer_bytes for part in parts[k::each]) for k in range(each)]
        return tuple(
            replace(parts[place * each + k], buffer_bytes=longest[k])
            for place in self.places
            for k in range(each)
        )


WHOLE = Share()
"""That of one device, which has all parts."""


def device_layout(layout: RecordLayout, count: int) -> RecordLayout:
    """What a record is on each of `count` devices: successive rows of every matrix, all of other arrays.

    Behind the last row of a matrix a device may have rows that are none; what they expand to is undefined.
    """
    parts = layout.parts // count

    def own(tensor: TensorLayout) -> TensorLayout:
        if isinstance(tensor, DenseLayout) or count == 1:
            return tensor
        return replace(tensor, shape=(parts * tensor.rows, tensor.columns))

    return replace(layout, parts=parts, tensors=tuple((name, own(tensor)) for name, tensor in layout.tensors))


def check_divides(path: Location, manifest: Manifest, count: int) -> None:
    """Raises InvalidInputError unless every record can be spread over `count` devices: it has a multiple of
    so many parts, and its matrices are cut (an array that is stored dense is whole in every part)."""
    for record in manifest.records if count > 1 else ():
        layout = manifest.layout(record)
        whole = [
            name
            for name, tensor in layout.tensors
            if not isinstance(tensor, FieldLayout) and len(tensor.shape) > 1
        ]
        if layout.parts % count or whole:
            got = f"record {record.name} in {layout.parts} part(s)"
            raise InvalidInputError(
                f"checkpoint {path}",
                got=f"{got}, {whole[0]} whole in each" if whole and not layout.parts % count else got,
                expected=f"a multiple of {count} parts, one or more for each device of the mesh",
                fix=f"cut it with `endor reshard {path} OTHER --shards {count}`"
                if isinstance(path, Path)
                else f"convert it with --shards {count}, or copy it to a disk for `endor reshard`",
            )
