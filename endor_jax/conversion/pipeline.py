"""A conversion: source → prune → encode → store, one record at a time.

First a survey: every role (tensor name and shape) is sampled in three layers, as it will be stored, and gets
one codec for the whole checkpoint. Then each record is read, prepared, encoded and written; memory holds one
record, or the largest single tensor.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from endor_jax import models
from endor_jax.arrays import array_bytes, bits_of
from endor_jax.conversion.estimate import estimate, stored_info
from endor_jax.conversion.layouts import VOCABULARY, record_layouts
from endor_jax.conversion.prepare import prepare
from endor_jax.conversion.settings import ConvertSettings
from endor_jax.errors import InvalidInputError
from endor_jax.format.choose import sample_rows
from endor_jax.format.layout import RecordLayout, TensorSpec
from endor_jax.format.values import Codec
from endor_jax.sources.mapping import Place, locate
from endor_jax.sources.opening import open_source
from endor_jax.sources.source import Source
from endor_jax.store.manifest import Manifest
from endor_jax.store.save import codec_for
from endor_jax.store.writer import CheckpointWriter, check_destination
from endor_jax.version import VERSION

Progress = Callable[[str, int, int], None]
"""(what is being done, dense bytes done, dense bytes in all)"""


@dataclass(frozen=True)
class Survey:
    """What a conversion will write: source names by place, record by record, and a layout for each record.

    sparsity: fraction of zeros in the samples of a role, by kind of record and tensor.
    """

    names: dict[str, dict[str, str]]
    layouts: dict[str, RecordLayout]
    sparsity: dict[tuple[str, str], float]
    dense_bytes: int

    @property
    def expected(self) -> Manifest:
        """The manifest to expect, its part lengths estimated."""
        return estimate(self.layouts, lambda record, tensor: self.sparsity[_kind(record), tensor])


def survey_conversion(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    *,
    settings: ConvertSettings,
    progress: Progress | None = None,
) -> Survey:
    """What `run_conversion` would do; reads samples, writes nothing. Raises as it does."""
    with open_source(Path(source)) as opened:
        check_destination(Path(destination))
        return survey(opened, settings, progress or (lambda what, done, total: None))


@dataclass(frozen=True)
class Conversion:
    """What a conversion did. dense_bytes: all tensors in the dtype they are stored in."""

    path: Path
    manifest: Manifest
    dense_bytes: int
    negative_zeros: int

    @property
    def stored_bytes(self) -> int:
        """Bytes of all parts."""
        return self.manifest.stored_bytes


def run_conversion(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    *,
    settings: ConvertSettings,
    progress: Progress | None = None,
) -> Conversion:
    """Converts `source` to a checkpoint at `destination`; see `endor_jax.conversion.api.convert`."""
    report = progress or (lambda what, done, total: None)
    with open_source(Path(source)) as opened:
        check_destination(Path(destination))
        plan = survey(opened, settings, report)
        writer = CheckpointWriter(destination)
        config = _config(opened, settings)
        for name, data in (opened.files() | {"config.json": json.dumps(config, indent=2).encode()}).items():
            writer.write_file(name, data)
        done = negative_zeros = 0
        for record, tensors in plan.names.items():
            report(f"encoding {record}", done, plan.dense_bytes)
            arrays, changed = _prepare_record(opened, record, tensors, settings)
            writer.write_record(record, plan.layouts[record], arrays)
            negative_zeros += changed
            done += sum(array.nbytes for array in arrays.values())
            del arrays  # or it would still be here while the next record is read
        report("done", done, plan.dense_bytes)
        made = {
            "by": f"endor_jax {VERSION}",
            "source": str(opened.path.resolve()),
            "settings": asdict(settings),
            "negative_zeros": negative_zeros,
        }
        manifest = writer.finish(model=config, made=made)
    return Conversion(Path(destination), manifest, plan.dense_bytes, negative_zeros)


def _prepare_record(
    source: Source, record: str, tensors: Mapping[str, str], settings: ConvertSettings
) -> tuple[dict[str, np.ndarray], int]:
    """The arrays of a record by tensor, and how many −0.0 were changed in them."""
    prepared = {
        tensor: prepare(source, name, Place(record, tensor), settings=settings)
        for tensor, name in tensors.items()
    }
    arrays = {tensor: p.array for tensor, p in prepared.items()}
    return arrays, sum(p.negative_zeros for p in prepared.values())


def survey(source: Source, settings: ConvertSettings, report: Progress) -> Survey:
    """Finds all tensors, chooses a codec per role and lays every record out. Reads only the samples."""
    names = _located(source)
    total = sum(
        array_bytes(*_stored(source, name, settings)) for named in names.values() for name in named.values()
    )
    sampled = _sampled_records(list(names))
    codecs: dict[tuple[str, str, tuple[int, ...], str], Codec | None] = {}
    sparsity: dict[tuple[str, str], float] = {}
    for record, tensors in names.items():
        for tensor, name in tensors.items():
            shape, dtype = _stored(source, name, settings)
            role = (_kind(record), tensor, shape, dtype)
            if role in codecs:
                continue
            report(f"choosing codecs: {_kind(record)} {tensor}", 0, total)
            places = {
                Place(r, tensor): names[r][tensor]
                for r in sampled[_kind(record)]
                if tensor in names[r] and _stored(source, names[r][tensor], settings) == (shape, dtype)
            } or {Place(record, tensor): name}
            codecs[role], sparsity[_kind(record), tensor] = _choose(source, places, settings)
    specs = {
        record: {
            tensor: TensorSpec(shape, dtype, codecs[_kind(record), tensor, shape, dtype])
            for tensor, name in tensors.items()
            for shape, dtype in [_stored(source, name, settings)]
        }
        for record, tensors in names.items()
    }
    return Survey(names, record_layouts(specs), sparsity, total)


def _located(source: Source) -> dict[str, dict[str, str]]:
    """Source names by record and tensor, once config, names and shapes are what the model code knows."""
    decoder = models.decoder(models.from_hf(source.config))
    matrix = {"weight": (decoder.config.vocabulary_size, decoder.config.hidden_size)}
    shapes = {"stem": decoder.stem_shapes, "layers": decoder.block_shapes, "final": decoder.final_shapes}
    shapes |= dict.fromkeys(VOCABULARY, matrix)
    names: dict[str, dict[str, str]] = {}
    for place, name in locate(source).items():
        expected = shapes[_kind(place.record)][place.tensor]
        if source.tensors[name].shape != expected:
            raise InvalidInputError(
                f"tensor {name!r} of {source.path}",
                got=f"shape {source.tensors[name].shape}",
                expected=f"{expected}, by config.json",
                fix="check that config.json belongs to these weights",
            )
        names.setdefault(place.record, {})[place.tensor] = name
    return names


def _choose(
    source: Source, places: Mapping[Place, str], settings: ConvertSettings
) -> tuple[Codec | None, float]:
    """The codec of one role and its fraction of zeros, from samples of the tensors at some places."""
    samples = [
        _sample(prepare(source, name, place, settings=settings).array) for place, name in places.items()
    ]
    nonzero = sum(int(np.count_nonzero(bits_of(sample))) for sample in samples)
    return codec_for(samples, settings.values), 1 - nonzero / sum(sample.size for sample in samples)


def _config(source: Source, settings: ConvertSettings) -> dict[str, Any]:
    """The model's config, telling the dtype that its weights are stored in."""
    if settings.dtype is None:
        return source.config
    key = "torch_dtype" if "torch_dtype" in source.config else "dtype"
    return source.config | {key: settings.dtype}


def _stored(source: Source, name: str, settings: ConvertSettings) -> tuple[tuple[int, ...], str]:
    """Shape and dtype that a tensor will have in the checkpoint."""
    info = stored_info(source, name, settings.dtype)
    return info.shape, info.dtype


def _sampled_records(records: list[str]) -> dict[str, list[str]]:
    """By kind of record, those whose tensors stand for all: the first, the middle and the last."""
    kinds: dict[str, list[str]] = {}
    for record in records:
        kinds.setdefault(_kind(record), []).append(record)
    return {
        kind: list(dict.fromkeys([group[0], group[len(group) // 2], group[-1]]))
        for kind, group in kinds.items()
    }


def _sample(array: np.ndarray) -> np.ndarray:
    """The rows of a matrix that a codec is chosen by: no more need stay in memory. Anything else as it is."""
    return sample_rows(array) if array.ndim == 2 else array


def _kind(record: str) -> str:
    """ "layers" for "layers.3"; other records are their own kind."""
    return record.split(".")[0]
