"""The protocol that every family follows: stem, block, final part, as pure functions of flat parameters.

Parameters are arguments: a dict from a parameter's name ("attention.query.weight", the module path joined by
dots) to an array or a SparseTensor. A block is built once, abstractly, and serves all layers, which differ in
their parameters only; `start`, one position per sequence, is data. So one compiled step serves every layer
and every position, for each shape of x: one token when decoding, a chunk when a prompt is read. The output
head is outside: the caller multiplies x by blocks of vocabulary rows.

Dtypes may be mixed. x and the cache have the dtype of the embedding rows throughout, and every parameter
keeps its own: a product sums in float32 and is rounded to x's dtype, a norm is float32 inside, a bias is cast
to x's dtype. transformers instead casts all parameters to one dtype when it loads them; where they already
have one, the two are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import jax
from flax import nnx
from jaxtyping import Array, Float, Int

from endor_jax.errors import InvalidInputError
from endor_jax.format.tensor import SparseTensor
from endor_jax.models import llama, opt
from endor_jax.models.attention import Attention
from endor_jax.models.axis import Axis
from endor_jax.models.cache import KVCache
from endor_jax.models.config import LlamaConfig, OptConfig
from endor_jax.models.linear import Linear

Params = Mapping[str, jax.Array | SparseTensor]
"""Parameters of one stem, block or final part, by name."""


class Stem(Protocol):
    """What stands between the embedding rows and the first block."""

    def __call__(
        self, rows: Float[Array, "batch time embedding"], start: Int[Array, " batch"]
    ) -> Float[Array, "batch time hidden"]: ...


class Block(Protocol):
    """One layer; the cache is its own."""

    def __call__(
        self, x: Float[Array, "batch time hidden"], cache: KVCache, start: Int[Array, " batch"]
    ) -> tuple[Float[Array, "batch time hidden"], KVCache]: ...


class Final(Protocol):
    """What stands between the last block and the output head."""

    def __call__(self, x: Float[Array, "batch time hidden"]) -> Float[Array, "batch time embedding"]: ...


@dataclass(frozen=True)
class Family:
    """The modules of one family, each made from its config."""

    stem: Callable[[Any], Stem]
    block: Callable[[Any], Block]
    final: Callable[[Any], Final]


SPREAD = (Linear, Attention, llama.SwiGLU, opt.FeedForward, opt.OptStem)
"""Modules that do something else over an axis of devices."""
FAMILIES = {
    LlamaConfig: Family(llama.LlamaStem, llama.LlamaBlock, llama.LlamaFinal),
    OptConfig: Family(opt.OptStem, opt.OptBlock, opt.OptFinal),
}


@dataclass(frozen=True)
class Abstract:
    """A module without values: its structure, and the names and shapes of its parameters in sorted order.

    inputs: weight of each Linear → the first one that is multiplied with the same x.
    """

    name: str
    graphdef: nnx.GraphDef
    shapes: Mapping[str, tuple[int, ...]]
    inputs: Mapping[str, str]


@dataclass(frozen=True)
class Decoder:
    """A model's structure without its weights; build it with `decoder`.

    Hashable, and equal for equal configs, so it can be a static argument of `jax.jit`.
    """

    config: LlamaConfig | OptConfig
    # The modules follow from the config: comparing that is enough.
    stem: Abstract = field(compare=False, repr=False)
    block: Abstract = field(compare=False, repr=False)
    final: Abstract = field(compare=False, repr=False)

    @property
    def stem_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name → shape of the stem's parameters; empty for Llama."""
        return dict(self.stem.shapes)

    @property
    def block_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name → shape of one block's parameters; matrices are (outputs, inputs)."""
        return dict(self.block.shapes)

    @property
    def block_inputs(self) -> dict[str, str]:
        """Name of each matrix of a block → the first one that is multiplied with the same x: what calibration
        sums up over the inputs of one need not be summed up for the others."""
        return dict(self.block.inputs)

    @property
    def final_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name → shape of the final part's parameters; empty for some OPTs without a norm there."""
        return dict(self.final.shapes)


def decoder(config: LlamaConfig | OptConfig) -> Decoder:
    """The decoder of a config's family. Traces shapes only: no array is made, no device is touched."""
    family = FAMILIES[type(config)]
    parts = {name: _abstract(name, getattr(family, name), config) for name in ("stem", "block", "final")}
    return Decoder(config, **parts)


def stem(
    decoder: Decoder,
    params: Params,
    rows: Float[Array, "batch time embedding"],
    start: Int[Array, " batch"],
    *,
    axis: Axis | None = None,
) -> Float[Array, "batch time hidden"]:
    """x for the first block, from the embedding rows of the tokens at positions start, ..., start + time − 1.

    x keeps the dtype of `rows` in every block: the compute dtype. axis: inside `jax.shard_map`, the devices
    that each have successive rows of every matrix in `params`; so everywhere below.
    Raises InvalidInputError unless the names and shapes of `params` are those of `decoder.stem_shapes`.
    """
    return _module(decoder.stem, params, axis)(rows, start)


def block(
    decoder: Decoder,
    params: Params,
    x: Float[Array, "batch time hidden"],
    cache: KVCache,
    start: Int[Array, " batch"],
    *,
    axis: Axis | None = None,
) -> tuple[Float[Array, "batch time hidden"], KVCache]:
    """x after one layer, and the layer's cache with positions start, ..., start + time − 1 written.

    A query sees cached positions up to its own. The padding of a last chunk therefore harms nothing: its
    entries lie behind every real query and are overwritten by the tokens that come to stand there; the cache
    must have room for them (`cache.write`). Raises InvalidInputError unless the names and shapes of `params`
    are those of `decoder.block_shapes`.
    """
    return _module(decoder.block, params, axis)(x, cache, start)


def tapped_block(
    decoder: Decoder,
    params: Params,
    x: Float[Array, "batch time hidden"],
    cache: KVCache,
    start: Int[Array, " batch"],
) -> tuple[Float[Array, "batch time hidden"], KVCache, dict[str, Float[Array, "batch time inputs"]]]:
    """`block`, and for calibration the input of each matrix: weight name → (batch, time, inputs).

    The inputs keep x's dtype. Raises as `block` does.
    """
    module = _module(decoder.block, params)
    linears = {_name(path): part for path, part in nnx.iter_modules(module) if isinstance(part, Linear)}
    for linear in linears.values():
        linear.tapped = True
    x, cache = module(x, cache, start)
    return x, cache, {name: linear.inputs.get_value() for name, linear in linears.items()}


def final(
    decoder: Decoder, params: Params, x: Float[Array, "batch time hidden"], *, axis: Axis | None = None
) -> Float[Array, "batch time embedding"]:
    """What the output head multiplies, as wide as the embedding rows.

    Logits of a model with a tied head are x @ embedding.T.

    Raises InvalidInputError unless the names and shapes of `params` are those of `decoder.final_shapes`.
    """
    return _module(decoder.final, params, axis)(x)


def _abstract(name: str, make: Callable[[Any], Any], config: LlamaConfig | OptConfig) -> Abstract:
    module = nnx.eval_shape(lambda: make(config))
    graphdef, state = nnx.split(module)
    shapes = {_joined(path): leaf.get_value().shape for path, leaf in nnx.to_flat_state(state)}
    return Abstract(f"{config.family} {name}", graphdef, dict(sorted(shapes.items())), _inputs(module))


def _inputs(module: Any) -> dict[str, str]:
    """`Abstract.inputs`, from what each module says of its own in `same_input`."""
    modules = dict(nnx.iter_modules(module))
    inputs: dict[str, str] = {}
    for path, part in modules.items():
        if isinstance(part, Linear):
            same: Mapping[str, str] = getattr(modules[path[:-1]], "same_input", {})
            own = str(path[-1])
            inputs[_name(path)] = _name((*path[:-1], same.get(own, own)))
    return dict(sorted(inputs.items()))


def _module(abstract: Abstract, params: Params, axis: Axis | None = None) -> Any:
    """The module with `params` in place; made and dropped inside a trace."""
    missing = sorted(abstract.shapes.keys() - params.keys())
    unexpected = sorted(params.keys() - abstract.shapes.keys())
    if missing or unexpected:
        raise InvalidInputError(
            f"parameters of the {abstract.name}",
            got=f"missing {_listed(missing)}, unexpected {_listed(unexpected)}",
            expected=f"exactly {_listed(list(abstract.shapes))}",
            fix="check the key mapping of the checkpoint and the biases its config asks for",
        )
    for name, shape in abstract.shapes.items():
        if not _agree(tuple(params[name].shape), shape, axis):
            raise InvalidInputError(
                f"parameter '{name}' of the {abstract.name}",
                got=f"shape {tuple(params[name].shape)}",
                expected=f"{shape}",
                fix="check the config; matrices are stored (outputs, inputs)",
            )
    state = nnx.from_flat_state(
        [(tuple(name.split(".")), nnx.Param(params[name])) for name in abstract.shapes]
    )
    module = nnx.merge(abstract.graphdef, state)
    if axis is not None:
        for _, part in nnx.iter_modules(module):
            if isinstance(part, SPREAD):
                part.axis = axis
    return module


def _agree(got: tuple[int, ...], whole: tuple[int, ...], axis: Axis | None) -> bool:
    """Whether a parameter has its shape; of a matrix over an axis, all devices together have its rows, and
    equally many each."""
    if axis is None or len(whole) < 2:
        return got == whole
    return len(got) == 2 and got[1] == whole[1] and got[0] * axis.size >= whole[0]


def _name(path: Sequence[Any]) -> str:
    """The name of the weight of the Linear at a path."""
    return f"{_joined(path)}.weight"


def _joined(path: Sequence[Any]) -> str:
    return ".".join(map(str, path))


def _listed(names: list[str]) -> str:
    return ", ".join(names) or "none"
