"""A converted model as dense tensors under Hugging Face names, one record in memory at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from endor_jax.arrays import bits_of
from endor_jax.conversion.survey import Progress
from endor_jax.format.decode import decode
from endor_jax.format.layout import FieldLayout
from endor_jax.sources.mapping import Place, to_hf
from endor_jax.sources.source import TensorInfo
from endor_jax.store.reader import Checkpoint


@dataclass(frozen=True)
class ExportModel:
    """What every export format is written from. places: by Hugging Face name, in the order of the records."""

    checkpoint: Checkpoint
    places: Mapping[str, Place]
    infos: Mapping[str, TensorInfo]
    report: Progress

    def tensors(self) -> Iterator[tuple[str, np.ndarray]]:
        """Every tensor, decoded, in the order of `places`. Raises what reading the checkpoint raises."""
        names = {place: name for name, place in self.places.items()}
        total, done = sum(info.nbytes for info in self.infos.values()), 0
        for record in self.checkpoint.manifest.records:
            self.report(f"decoding {record.name}", done, total)
            words = self.checkpoint.read_record(record)
            for tensor in words:
                array = decode(words[tensor])
                yield names[Place(record.name, tensor)], array
                done += array.nbytes
        self.report("done", total, total)

    def files(self) -> dict[str, bytes]:
        """Config and tokenizer files by name."""
        return {name: self.checkpoint.read_file(name) for name in self.checkpoint.manifest.kept_files}

    @cached_property
    def nonzero(self) -> dict[str, int]:
        """By name, the elements with other bits than +0.0.

        The manifest has counted them, but of quantised matrices it counts integers, and a scale may be so
        small that such a one is zero all the same: those are decoded here.
        """
        manifest = self.checkpoint.manifest
        counts: dict[str, int] = {}
        for record in manifest.records:
            layout, words = manifest.layout(record), None
            for name, place in self.places.items():
                if place.record != record.name:
                    continue
                tensor = layout[place.tensor]
                counts[name] = record.stats[place.tensor].nonzero
                if isinstance(tensor, FieldLayout) and tensor.codec.quantised:
                    words = words or self.checkpoint.read_record(record)
                    counts[name] = int(np.count_nonzero(bits_of(decode(words[place.tensor]))))
        return counts

    @property
    def sparsity(self) -> float:
        """Fraction of zeros in the whole model."""
        elements = sum(math.prod(info.shape) for info in self.infos.values())
        return (elements - sum(self.nonzero.values())) / elements


def export_model(checkpoint: Checkpoint, report: Progress) -> ExportModel:
    """The model of an open checkpoint. Raises InvalidInputError for parameter trees, which are no model."""
    manifest = checkpoint.manifest
    family = checkpoint.model_config()["model_type"]
    places: dict[str, Place] = {}
    infos: dict[str, TensorInfo] = {}
    for record in manifest.records:
        for tensor, layout in manifest.layout(record).tensors:
            name = to_hf(family, Place(record.name, tensor))
            places[name] = Place(record.name, tensor)
            infos[name] = TensorInfo(layout.shape, layout.dtype)
    return ExportModel(checkpoint, places, infos, report)
