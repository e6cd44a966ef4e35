"""The survey before a conversion: what will be written, with which codecs, how large, in how much memory.

Every role (tensor name, shape and dtype) is sampled in three layers, as it will be stored, and gets one codec
for the whole checkpoint. Which elements a calibrated method will keep is not known before it gets there: the
samples are what Wanda would keep, given what the unpruned layers meet. One tensor is in memory at a time, and
samples of at most three; for calibrated methods one layer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from endor_jax import models
from endor_jax.arrays import array_bytes, bits_of
from endor_jax.conversion.calibrate import step_blocks
from endor_jax.conversion.estimate import estimate, parsed_config, stored_info
from endor_jax.conversion.layouts import record_layouts
from endor_jax.conversion.memory import calibration_bytes, peak_bytes
from endor_jax.conversion.prepare import prepare, prunable
from endor_jax.conversion.profile import LayerProfile, profile_layers
from endor_jax.conversion.settings import CALIBRATED, ConvertSettings
from endor_jax.conversion.sparsities import layer_sparsities
from endor_jax.errors import InvalidInputError, about
from endor_jax.format.choose import codec_size, sample_rows
from endor_jax.format.layout import RecordLayout, TensorSpec
from endor_jax.format.values import Codec
from endor_jax.prune.magnitude import apply_mask
from endor_jax.prune.structure import ROW
from endor_jax.prune.wanda import wanda
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

    sparsities: what each layer is pruned to. expected: the manifest to expect, its part lengths estimated.
    dense_bytes: all tensors in the dtype they are stored in. expected_peak_host_bytes: a bound on the
    resident memory of the process, all in all.
    """

    names: dict[str, dict[str, str]]
    layouts: dict[str, RecordLayout]
    sparsities: dict[str, float]
    expected: Manifest
    dense_bytes: int
    expected_peak_host_bytes: int


def survey(
    source: Source,
    settings: ConvertSettings,
    report: Progress,
    blocks: Int[np.ndarray, "blocks length"] | None = None,
) -> Survey:
    """Finds all tensors, chooses a codec per role and lays every record out. Reads only the samples; with
    calibration `blocks`, which settings.calibrated asks for, every layer once."""
    decoder = models.decoder(parsed_config(source.config))
    names = _located(source, decoder)
    total = sum(
        array_bytes(*_stored(source, name, settings)) for named in names.values() for name in named.values()
    )

    def say(what: str) -> None:
        report(what, 0, total)

    profile: dict[str, LayerProfile] = {}
    if blocks is not None:
        first = blocks[: step_blocks(*blocks.shape)]
        profile = profile_layers(source, decoder, names, first, settings=settings, report=say)
    sparsities = layer_sparsities(names, settings, {name: its.outliers for name, its in profile.items()})
    sampler = _Sampler(source, settings, sparsities, profile)
    found = _sampled_roles(sampler, names, say)
    specs = {
        record: {
            tensor: TensorSpec(shape, dtype, found[_kind(record), tensor, shape, dtype].codec)
            for tensor, name in tensors.items()
            for shape, dtype in [_stored(source, name, settings)]
        }
        for record, tensors in names.items()
    }
    layouts = record_layouts(specs, shards=settings.shards)
    by_kind = {(kind, tensor): sampled for (kind, tensor, _, _), sampled in found.items()}
    expected = estimate(
        layouts,
        lambda record, tensor: by_kind[_kind(record), tensor].sparsity,
        escapes=lambda record, tensor: by_kind[_kind(record), tensor].escapes,
    )
    peak = peak_bytes(source, names, expected, settings=settings)
    if blocks is not None:
        peak = max(peak, calibration_bytes(decoder, names, source, settings=settings, blocks=blocks.shape))
    return Survey(names, layouts, sparsities, expected, total, peak)


@dataclass(frozen=True)
class _Sampler:
    """What is needed to see tensors of a source as they will be stored."""

    source: Source
    settings: ConvertSettings
    sparsities: Mapping[str, float]
    profile: Mapping[str, LayerProfile]

    def sample(self, place: Place, name: str) -> np.ndarray:
        """The rows of a tensor that its codec is chosen by, pruned."""
        prepared = prepare(
            self.source,
            name,
            place,
            settings=self.settings,
            sparsity=self.sparsities.get(place.record),
        )
        sample = _sample(prepared.array)
        if self.settings.prune not in CALIBRATED or not prunable(place, prepared.array.shape):
            return sample
        structure = self.settings.mask_structure
        with about(f"tensor {name!r}"):
            mask = wanda(
                sample.astype(np.float32),
                self.profile[place.record].squared_norms[place.tensor],
                sparsity=self.sparsities[place.record],
                structure=ROW if structure.scope == "matrix" else structure,  # of some rows
            )
        return apply_mask(sample, np.asarray(mask))

    def values(self, place: Place, shape: tuple[int, ...]) -> str:
        """The codecs to choose from. What is lossy is for the layers' matrices alone."""
        lossless = self.settings.lossy and not prunable(place, shape)
        return "auto" if lossless else self.settings.values


def _sampled_roles(
    sampler: _Sampler, names: Mapping[str, Mapping[str, str]], report: Callable[[str], None]
) -> dict[Role, Sampled]:
    """What samples show of every role."""
    source, settings = sampler.source, sampler.settings
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
            values = sampler.values(Place(record, tensor), shape)
            found[role] = _choose([sampler.sample(place, name) for place, name in places.items()], values)
    return found


def _located(source: Source, decoder: models.Decoder) -> dict[str, dict[str, str]]:
    """Source names by record and tensor, once config, names and shapes are what the model code knows."""
    shapes = models.part_shapes(decoder)
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


def _choose(samples: list[np.ndarray], values: str) -> Sampled:
    """The codec of one role, from samples of tensors."""
    nonzero = sum(int(np.count_nonzero(bits_of(sample))) for sample in samples)
    elements = sum(sample.size for sample in samples)
    codec = codec_for(samples, values)
    sparsity = 1 - nonzero / elements if elements else 0.0
    if codec is None:
        return Sampled(None, sparsity, 0.0)
    escapes = sum(codec_size(sample, codec)[1] for sample in samples)
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
