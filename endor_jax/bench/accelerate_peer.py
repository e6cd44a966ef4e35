"""Hugging Face Accelerate's ways to run a model that does not fit, each opened as its documentation says.

- `disk_offload(model, directory)`: every weight is a memory-mapped file of its own, copied when its module
  runs. The skeleton of the model is made without weights, so that nothing else is in memory.
- `from_pretrained(device_map=...)`, which ends in `dispatch_model`: the layers (and an untied head) on disk,
  which are views of the safetensors file there is, not copied; embedding and norms in memory. This is the
  best that Accelerate can do: less is moved per token.
- `cpu_offload(model)`: the weights in host memory; on a GPU also from pinned memory, which its documentation
  does not ask for, but its `state_dict` allows.

Buffers stay where they are (`offload_buffers=False`, the default), the dtype is that of the files.
No JAX here.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from endor_jax.bench.contender_process import OpenModel
from endor_jax.bench.greedy import greedy
from endor_jax.errors import MissingDependencyError


def write_offloaded(dense: Path, directory: Path) -> None:
    """The files that `disk_offload` reads, as it writes them itself from a model in memory."""
    _, transformers, accelerate = _imported()
    model = transformers.AutoModelForCausalLM.from_pretrained(dense, dtype="auto")
    accelerate.utils.offload_state_dict(directory, model.state_dict())


@contextmanager
def disk_offload(dense: Path, offloaded: Path, *, device: str, threads: int) -> Iterator[OpenModel]:
    """All weights in the files of `offloaded`; config and dtype from the directory `dense`."""
    torch, transformers, accelerate = _imported(device, threads)
    config = transformers.AutoConfig.from_pretrained(dense)
    with accelerate.init_empty_weights():
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=config.dtype).eval()
    accelerate.disk_offload(model, offloaded, execution_device=torch.device(device))
    yield OpenModel(greedy(model, device), _offloaded_bytes(model), device)


@contextmanager
def device_map(dense: Path, directory: Path, *, device: str, threads: int) -> Iterator[OpenModel]:
    """Layers (and an untied head) read from the files of `dense`, everything else on the device.

    directory: where transformers puts weights that it cannot use from their files; nothing, here.
    """
    torch, transformers, accelerate = _imported(device, threads)
    config = transformers.AutoConfig.from_pretrained(dense)
    with accelerate.init_empty_weights():
        skeleton = transformers.AutoModelForCausalLM.from_config(config)
    places = _places(torch, skeleton, "cpu" if device == "cpu" else 0)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        dense, dtype="auto", device_map=places, offload_folder=directory
    ).eval()
    yield OpenModel(greedy(model, device), _offloaded_bytes(model), device)


@contextmanager
def cpu_offload(dense: Path, *, device: str, threads: int, pinned: bool) -> Iterator[OpenModel]:
    """All weights in host memory, pinned or not."""
    torch, transformers, accelerate = _imported(device, threads)
    model = transformers.AutoModelForCausalLM.from_pretrained(dense, dtype="auto").eval()
    held = {name: weight.pin_memory() for name, weight in model.state_dict().items()} if pinned else None
    accelerate.cpu_offload(model, execution_device=torch.device(device), state_dict=held)
    yield OpenModel(greedy(model, device), _offloaded_bytes(model), device)


def _imported(device: str = "cpu", threads: int | None = None) -> tuple[Any, Any, Any]:
    """torch, transformers, accelerate, quiet. Raises MissingDependencyError if torch lacks the device."""
    torch, transformers, accelerate = (
        importlib.import_module(name) for name in ("torch", "transformers", "accelerate")
    )
    if device != "cpu" and not torch.cuda.is_available():
        raise MissingDependencyError(
            "torch",
            got=f"torch {torch.__version__} without CUDA",
            expected="one with CUDA, because ours runs on a GPU",
            fix="pip install torch, built for CUDA; or set JAX_PLATFORMS=cpu",
        )
    if threads is not None:
        torch.set_num_threads(threads)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("accelerate").setLevel(logging.ERROR)
    return torch, transformers, accelerate


def _places(torch: Any, skeleton: Any, home: str | int) -> dict[str, str | int]:
    """By module: the list of layers and an untied head on disk, all others that have tensors at home."""
    layers = next(
        name for name, module in skeleton.named_modules() if isinstance(module, torch.nn.ModuleList)
    )
    own = [name for name, module in skeleton.named_modules() if list(_own_tensors(module))]
    places: dict[str, str | int] = {name: home for name in own if not name.startswith(f"{layers}.")}
    places[layers] = "disk"
    if not skeleton.config.tie_word_embeddings:
        places["lm_head"] = "disk"
    return places


def _own_tensors(module: Any) -> Iterator[Any]:
    yield from module.parameters(recurse=False)
    yield from module.buffers(recurse=False)


def _offloaded_bytes(model: Any) -> int:
    """Of the weights that are nowhere until their module runs: each is moved once per token."""
    away = (weight for weight in model.parameters() if weight.is_meta)
    return sum(weight.numel() * weight.element_size() for weight in away)
