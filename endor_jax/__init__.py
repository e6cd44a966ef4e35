"""endor_jax: run large language models on GPUs too small for them, by streaming compressed sparse weights.

    import endor_jax as endor

    endor.convert("models/SmolLM2", "smol.endor", prune="magnitude", sparsity=0.3)
    with endor.load("smol.endor", device_memory="100MiB") as model:
        for token in model.generate("Once upon a time"):
            print(token.text, end="")

Nothing is imported before it is used, so that `endor --help` need not wait for JAX.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from endor_jax import errors as errors
    from endor_jax.adapters import orbax as orbax
    from endor_jax.conversion.api import convert as convert
    from endor_jax.conversion.export import export as export
    from endor_jax.conversion.reshard import reshard as reshard
    from endor_jax.conversion.settings import CalibrationText as CalibrationText
    from endor_jax.conversion.settings import ConvertSettings as ConvertSettings
    from endor_jax.format.codec import encode as encode
    from endor_jax.format.record import Record as Record
    from endor_jax.format.tensor import SparseTensor as SparseTensor
    from endor_jax.generate.model import Completion as Completion
    from endor_jax.generate.model import Model as Model
    from endor_jax.generate.model import Token as Token
    from endor_jax.generate.model import load as load
    from endor_jax.generate.sampling import Sampler as Sampler
    from endor_jax.kernels.expand import expand as expand
    from endor_jax.kernels.linear import linear as linear
    from endor_jax.peers.join import join as join
    from endor_jax.peers.peers import Peers as Peers
    from endor_jax.search.api import highest_sparsity as highest_sparsity
    from endor_jax.store.reader import Checkpoint as Checkpoint
    from endor_jax.store.reader import Checkpoint as open  # noqa: F401
    from endor_jax.store.remote.cache import PartCache as PartCache
    from endor_jax.store.save import save as save
    from endor_jax.streaming.api import Stream as Stream
    from endor_jax.streaming.api import stream as stream
    from endor_jax.streaming.plan import Plan as Plan
    from endor_jax.version import VERSION as __version__  # noqa: F401

_HOMES = {
    "CalibrationText": "endor_jax.conversion.settings:CalibrationText",
    "Checkpoint": "endor_jax.store.reader:Checkpoint",
    "Completion": "endor_jax.generate.model:Completion",
    "ConvertSettings": "endor_jax.conversion.settings:ConvertSettings",
    "Model": "endor_jax.generate.model:Model",
    "PartCache": "endor_jax.store.remote.cache:PartCache",
    "Peers": "endor_jax.peers.peers:Peers",
    "Plan": "endor_jax.streaming.plan:Plan",
    "Record": "endor_jax.format.record:Record",
    "Sampler": "endor_jax.generate.sampling:Sampler",
    "SparseTensor": "endor_jax.format.tensor:SparseTensor",
    "Stream": "endor_jax.streaming.api:Stream",
    "Token": "endor_jax.generate.model:Token",
    "__version__": "endor_jax.version:VERSION",
    "convert": "endor_jax.conversion.api:convert",
    "encode": "endor_jax.format.codec:encode",
    "errors": "endor_jax.errors",
    "expand": "endor_jax.kernels.expand.api:expand",
    "export": "endor_jax.conversion.export:export",
    "highest_sparsity": "endor_jax.search.api:highest_sparsity",
    "join": "endor_jax.peers.join:join",
    "linear": "endor_jax.kernels.linear.api:linear",
    "load": "endor_jax.generate.model:load",
    "orbax": "endor_jax.adapters.orbax",
    "open": "endor_jax.store.reader:Checkpoint",
    "reshard": "endor_jax.conversion.reshard:reshard",
    "save": "endor_jax.store.save:save",
    "stream": "endor_jax.streaming.api:stream",
}
"""Public name -> where it lives."""

__all__ = sorted(_HOMES)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'endor_jax' has no attribute {name!r}; it has {', '.join(__all__)}")
    module, _, attribute = _HOMES[name].partition(":")
    found = importlib.import_module(module)
    return getattr(found, attribute) if attribute else found


def __dir__() -> list[str]:
    return __all__
