"""The options of every verb that several devices of one process can do together, and the mesh they mean."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from jax.sharding import Mesh

TensorParallel = Annotated[
    int | None,
    typer.Option(min=1, help="Devices that share every layer; the checkpoint needs --shards."),
]
PipelineParallel = Annotated[
    int | None,
    typer.Option(min=1, help="Stages, each with some of the layers, on devices of their own."),
]


def mesh_of(pipeline_parallel: int | None, tensor_parallel: int | None) -> Mesh | None:
    """The devices that `--pipeline-parallel` and `--tensor-parallel` ask for; None if neither is said."""
    from endor_jax.streaming.devices import first_devices, first_stages

    if pipeline_parallel is not None:
        return first_stages(pipeline_parallel, tensor_parallel or 1)
    return None if tensor_parallel is None else first_devices(tensor_parallel)
