"""From Hugging Face tensor names to places in our records and back, by the tables in `families`.

A name that no row matches is refused: a tensor nobody looked at may change what the model computes. What may
be left out is listed with the reason.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from endor_jax.arrays import bits_of
from endor_jax.errors import InvalidInputError, UnsupportedError
from endor_jax.sources.brief import brief
from endor_jax.sources.families import FAMILIES, HEAD, LAYER, Family, Row
from endor_jax.sources.source import Source

_SHOWN = 20  # names in an error message


@dataclass(frozen=True)
class Place:
    """A tensor in our checkpoint: record "layers.3", tensor "attention.query.weight"."""

    record: str
    tensor: str


def to_endor(family: object, hf_name: str) -> Place | None:
    """Where a Hugging Face tensor goes; None if it is ignorable.

    Raises UnsupportedError for an unknown family and InvalidInputError for a name that no row matches.
    """
    table = _family(family)
    for pattern, row in _patterns(family):
        if match := pattern.fullmatch(hf_name):
            return Place(
                row.record.replace("{i}", match["i"]) if "{i}" in row.record else row.record, row.tensor
            )
    bare = _strip_prefix(hf_name, table.prefix)
    if any(_regex(name).fullmatch(bare) for name in table.ignorable):
        return None
    raise InvalidInputError(
        f"tensor {brief(hf_name)}",
        got="a name that the table does not list",
        expected=f"a tensor of the {family} family",
        fix="check that `model_type` in config.json is right; extra tensors must be removed first",
    )


def to_hf(family: object, place: Place) -> str:
    """The full Hugging Face name of a place: the inverse of `to_endor`, prefix included.

    Raises UnsupportedError for an unknown family and InvalidInputError for a place that no row has.
    """
    table = _family(family)
    record, number = _split_record(place.record)
    for row in table.rows:
        if (row.record, row.tensor) == (record, place.tensor):
            return _full_name(table, row, number)
    raise InvalidInputError(
        f"{place}",
        got="a place that the table does not list",
        expected=f"one of the {family} family",
        fix="check it",
    )


def expected_places(family: object, config: Mapping[str, Any]) -> list[Place]:
    """Every tensor that a model with this config.json has, in the order of the table, layer by layer."""
    table = _family(family)
    rows = [row for row in table.rows if row.needs is None or row.needs(config)]
    if _tied(table, config):
        rows.remove(HEAD)
    first = [row for row in rows if row.record in ("embedding", "stem")]
    inside = [row for row in rows if row.record == LAYER]
    last = [row for row in rows if row.record in ("final", "head")]
    layers = [
        Place(f"layers.{i}", row.tensor) for i in range(int(config["num_hidden_layers"])) for row in inside
    ]
    ends = [[Place(row.record, row.tensor) for row in part] for part in (first, last)]
    return [*ends[0], *layers, *ends[1]]


def check_complete(family: object, config: Mapping[str, Any], places: Collection[Place]) -> None:
    """Raise InvalidInputError, naming what differs, unless `places` is exactly what the config calls for."""
    layers = config.get("num_hidden_layers")
    # Each layer has tensors: of more layers than tensors not even a list of what is missing should be made.
    if type(layers) is not int or not 0 < layers <= len(places):
        raise InvalidInputError(
            "num_hidden_layers in config.json",
            got=brief(layers),
            expected=f"a number of layers that {len(places)} tensors can make",
            fix="fetch config.json and all shards again",
        )
    expected = expected_places(family, config)
    given, wanted = set(places), set(expected)
    if missing := [to_hf(family, place) for place in expected if place not in given]:
        raise InvalidInputError(
            "checkpoint",
            got=f"no tensor {_some(missing)}",
            expected=f"all {len(expected)} tensors of a {family} with {config['num_hidden_layers']} layers",
            fix="fetch the missing shards, or correct config.json",
        )
    if surplus := [to_hf(family, place) for place in places if place not in wanted]:
        raise InvalidInputError(
            "checkpoint",
            got=f"tensor {_some(surplus)}, which its config has no use for",
            expected=f"the {len(expected)} tensors of a {family} with {config['num_hidden_layers']} layers",
            fix="correct config.json (layers, biases, tied embeddings), or remove them",
        )


def locate(source: Source) -> dict[Place, str]:
    """Place -> name in the source for every tensor of its model, in the order they are used.

    Of a tied pair, either may be there alone, as in transformers; of both, the head is left out after
    comparing their bits, one tensor in memory at a time. Raises InvalidInputError for tensors that are
    unknown, missing, there twice (with and without prefix), of no use, or tied by the config and different.
    """
    family = source.config.get("model_type", "")
    table = _family(family)
    found: dict[Place, str] = {}
    for name in source.tensors:
        place = to_endor(family, name)
        if place in found:
            raise InvalidInputError(
                f"tensor {name!r} of {source.path}",
                got=f"the same tensor as {found[place]!r}",
                expected="each tensor once",
                fix="remove one of the two",
            )
        if place is not None:
            found[place] = name
    head = Place(HEAD.record, HEAD.tensor)
    if _tied(table, source.config) and head in found:
        name = found.pop(head)
        _check_tied(source, found.setdefault(Place("embedding", "weight"), name), name)
    check_complete(family, source.config, found.keys())
    return {place: found[place] for place in expected_places(family, source.config)}


def _check_tied(source: Source, embedding: str, head: str) -> None:
    """transformers 5 uses both if they differ, and warns that the config is wrong; here that is an error,
    because the config that we store has to say what the model is."""
    same = source.tensors[embedding] == source.tensors[head] and (
        embedding == head or _digest(source, embedding) == _digest(source, head)
    )
    if not same:
        raise InvalidInputError(
            f"tensor {head!r} of {source.path}",
            got=f"values other than those of {embedding!r}",
            expected="the same, as config.json has tie_word_embeddings",
            fix="set tie_word_embeddings to false to use both, as transformers does, or remove the tensor",
        )


def _digest(source: Source, name: str) -> bytes:
    """Of a tensor's bits; the tensor itself is let go, so two of them are never in memory."""
    return hashlib.blake2b(bits_of(source.read(name)).data).digest()


def _some(names: list[str]) -> str:
    """The first few of many names, and how many more there are."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _family(family: object) -> Family:
    if not isinstance(family, str) or family not in FAMILIES:
        raise UnsupportedError(
            "model_type in config.json",
            got=brief(family),
            expected=f"one of {', '.join(FAMILIES)}",
            fix="this version reads no other families",
        )
    return FAMILIES[family]


def _tied(table: Family, config: Mapping[str, Any]) -> bool:
    return bool(config.get("tie_word_embeddings", table.ties_by_default))


@cache
def _regex(pattern: str) -> re.Pattern[str]:
    # A layer number has one spelling, or two names could mean one place.
    return re.compile(re.escape(pattern).replace(r"\{i\}", "(?P<i>0|[1-9][0-9]*)"))


@cache
def _patterns(family: str) -> tuple[tuple[re.Pattern[str], Row], ...]:
    """Every spelling of every row: in full, without "model.", and without any prefix."""
    table = _family(family)
    prefixes = dict.fromkeys((table.prefix, table.prefix.removeprefix("model."), ""))
    return tuple(
        (_regex(row.hf if row is HEAD else prefix + row.hf), row) for row in table.rows for prefix in prefixes
    )


def _strip_prefix(name: str, prefix: str) -> str:
    return name.removeprefix(prefix).removeprefix(prefix.removeprefix("model."))


def _split_record(record: str) -> tuple[str, str]:
    """ "layers.3" -> ("layers.{i}", "3"); other records have no number."""
    match = re.fullmatch(r"layers\.(0|[1-9][0-9]*)", record)
    return (LAYER, match[1]) if match else (record, "")


def _full_name(table: Family, row: Row, number: str) -> str:
    return (row.hf if row is HEAD else table.prefix + row.hf).replace("{i}", number)
