"""The survey before a conversion: what will be written, with which codecs, how large, in how much memory.

Every role (tensor name, shape and dtype) is sampled in three layers, as it will be stored, and gets one codec
for the whole checkpoint. One tensor is in memory at a time, and samples of at most three.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from endor_jax import models
from endor_jax.arrays import array_bytes, bits_of
from endor_jax.conversion.estimate import estimate, parsed_config, stored_info
from endor_jax.conversion.layouts import record_layouts
from endor_jax.conversion.memory import peak_bytes
from endor_jax.conversion.prepare import prepare
from endor_jax.conversion.settings import ConvertSettings
from endor_jax.errors import InvalidInputError
from endor_jax.format.choose import codec_size, sample_rows
from endor_jax.format.layout import RecordLayout, TensorSpec
from endor_jax.format.values import Codec
from endor_jax.sources.mapping import Place, locate
from endor_jax.sources.source import Source
from endor_jax.store.manifest import Manifest
from endor_jax.store.save import codec_for

Progress = Callable[[str, int, int], None]
"""(what is being done, dense bytes done, dense bytes in all)"""


Role = tuple[str, str, tuple[int, ...], str]
"""Kind of record, tensor, shape, dtype."""


@dataclass(frozen=True)
class Sampled:
    """What samples of a role showed: its codec, fraction of zeros, escapes per stored element."""

    codec: Codec | None
    sparsity: float
    escapes: float


@dataclass(frozen=True)
class Survey:
    """What a conversion will write: source names by place, record by record, and a layout for each record.

    expected: the manifest to expect, its part lengths estimated. dense_bytes: all tensors in the dtype they
    are stored in. expected_peak_host_bytes: a bound on the resident memory of the process, all in all.
    """

    names: dict[str, dict[str, str]]
    layouts: dict[str, RecordLayout]
    expected: Manifest
    dense_bytes: int
    expected_peak_host_bytes: int


def survey(source: Source, settings: ConvertSettings, report: Progress) -> Survey:
    """Finds all tensors, chooses a codec per role and lays every record out. Reads only the samples."""
    names = _located(source)
    total = sum(
        array_bytes(*_stored(source, name, settings)) for named in names.values() for name in named.values()
    )
    found = _sampled_roles(source, names, settings, lambda what: report(what, 0, total))
    specs = {
        record: {
            tensor: TensorSpec(shape, dtype, found[_kind(record), tensor, shape, dtype].codec)
            for tensor, name in tensors.items()
            for shape, dtype in [_stored(source, name, settings)]
        }
        for record, tensors in names.items()
    }
    layouts = record_layouts(specs)
    by_kind = {(kind, tensor): sampled for (kind, tensor, _, _), sampled in found.items()}
    expected = estimate(
        layouts,
        lambda record, tensor: by_kind[_kind(record), tensor].sparsity,
        escapes=lambda record, tensor: by_kind[_kind(record), tensor].escapes,
    )
    peak = peak_bytes(source, names, expected, dtype=settings.dtype)
    return Survey(names, layouts, expected, total, peak)


def _sampled_roles(
    source: Source,
    names: Mapping[str, Mapping[str, str]],
    settings: ConvertSettings,
    report: Callable[[str], None],
) -> dict[Role, Sampled]:
    """What samples show of every role."""
    sampled = _sampled_records(list(names))
    found: dict[Role, Sampled] = {}
    for record, tensors in names.items():
        for tensor, name in tensors.items():
            shape, dtype = _stored(source, name, settings)
            role = (_kind(record), tensor, shape, dtype)
            if role in found:
                continue
            report(f"choosing codecs: {_kind(record)} {tensor}")
            places = {
                Place(r, tensor): names[r][tensor]
                for r in sampled[_kind(record)]
                if tensor in names[r] and _stored(source, names[r][tensor], settings) == (shape, dtype)
            } or {Place(record, tensor): name}
            found[role] = _choose(source, places, settings)
    return found


def _located(source: Source) -> dict[str, dict[str, str]]:
    """Source names by record and tensor, once config, names and shapes are what the model code knows."""
    shapes = models.part_shapes(models.decoder(parsed_config(source.config)))
    names: dict[str, dict[str, str]] = {}
    for place, name in locate(source).items():
        expected = shapes[place.record][place.tensor]
        if source.tensors[name].shape != expected:
            raise InvalidInputError(
                f"tensor {name!r} of {source.path}",
                got=f"shape {source.tensors[name].shape}",
                expected=f"{expected}, by config.json",
                fix="check that config.json belongs to these weights",
            )
        names.setdefault(place.record, {})[place.tensor] = name
    return names


def _choose(source: Source, places: Mapping[Place, str], settings: ConvertSettings) -> Sampled:
    """The codec of one role, from samples of the tensors at some places."""
    samples = [
        _sample(prepare(source, name, place, settings=settings).array) for place, name in places.items()
    ]
    nonzero = sum(int(np.count_nonzero(bits_of(sample))) for sample in samples)
    elements = sum(sample.size for sample in samples)
    codec = codec_for(samples, settings.values)
    sparsity = 1 - nonzero / elements if elements else 0.0
    if codec is None:
        return Sampled(None, sparsity, 0.0)
    escapes = sum(codec_size(sample_rows(sample), codec)[1] for sample in samples)
    return Sampled(codec, sparsity, escapes / max(1, nonzero if codec.bitmap else elements))


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
