"""Reading plain checkpoints that Orbax wrote, by its old checkpointers and its new API."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest

from endor_jax.errors import InvalidInputError, NotFoundError
from endor_jax.sources import Source, TensorInfo, open_source
from endor_jax.sources.orbax import read_array, read_tree

KERNEL = np.arange(24, dtype=np.float32).reshape(4, 2, 3)
TREE: dict[str, Any] = {
    "params": {
        "layers_0": {"kernel": KERNEL.astype(ml_dtypes.bfloat16)},
        "layers_1": {"kernel": jnp.asarray(KERNEL + 1, jnp.bfloat16)},
        "scale": np.linspace(0, 1, 4, dtype=np.float32),
    },
    "step": 3,
}
KEY_MAP: dict[str, Any] = {
    "checkpoint": "checkpoint",
    "tensors": {
        "layers.{i}.weight": {"key": "params.layers_{i}.kernel", "transpose": [1, 2, 0], "shape": [6, 4]},
        "norm.weight": "params.scale",
    },
    "ignore": ["step"],
    "config": {"model_type": "llama"},
}


def save_v1(path: Path, tree: Any) -> None:
    ocp.v1.save(str(path), tree)


def save_v1_files(path: Path, tree: Any) -> None:
    context = ocp.v1.Context()
    context.array.saving.use_ocdbt = False
    with context:
        ocp.v1.save(str(path), tree)


def save_pytree(path: Path, tree: Any) -> None:
    ocp.PyTreeCheckpointer().save(path, tree)


def save_pytree_files(path: Path, tree: Any) -> None:
    ocp.PyTreeCheckpointer(use_ocdbt=False).save(path, tree)


def save_standard(path: Path, tree: Any) -> None:
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, tree)


def save_managed(path: Path, tree: Any) -> None:
    with ocp.CheckpointManager(path.parent / "steps") as manager:
        manager.save(5, args=ocp.args.StandardSave(tree))
    shutil.copytree(path.parent / "steps" / "5", path)


WRITERS = [save_v1, save_v1_files, save_pytree, save_pytree_files, save_standard, save_managed]


def write(directory: Path, save: Callable[[Path, Any], None] = save_v1, **key_map: object) -> Path:
    directory.mkdir(exist_ok=True)
    save(directory / "checkpoint", TREE)
    (directory / "key_map.json").write_text(json.dumps(KEY_MAP | key_map))
    return directory


@pytest.mark.parametrize("save", WRITERS)
def test_every_layout_that_orbax_writes_is_read(
    tmp_path: Path, save: Callable[[Path, Any], None], capfd: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, save)
    capfd.readouterr()
    with open_source(tmp_path) as source:
        assert isinstance(source, Source)
        assert source.config == {"model_type": "llama"}
        assert dict(source.tensors) == {
            "layers.0.weight": TensorInfo((6, 4), "bfloat16"),
            "layers.1.weight": TensorInfo((6, 4), "bfloat16"),
            "norm.weight": TensorInfo((4,), "float32"),
        }
        for layer in range(2):
            weight = source.read(f"layers.{layer}.weight")
            assert (weight.dtype.name, weight.flags.c_contiguous) == ("bfloat16", True)
            np.testing.assert_array_equal(weight, (KERNEL + layer).transpose(1, 2, 0).reshape(6, 4))
        np.testing.assert_array_equal(source.read("norm.weight"), TREE["params"]["scale"])
        with pytest.raises(InvalidInputError, match="one of its `tensors`"):
            source.read("layers.2.weight")
    assert capfd.readouterr() == ("", "")


def test_config_and_tokenizer_lie_beside_the_key_map(tmp_path: Path) -> None:
    write(tmp_path, config=None)
    with pytest.raises(NotFoundError, match=r"config\.json"):
        open_source(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type":  "opt"}')
    (tmp_path / "tokenizer.json").write_text("{}")
    source = open_source(tmp_path)
    assert source.config == {"model_type": "opt"}
    assert source.files() == {"config.json": b'{"model_type":  "opt"}', "tokenizer.json": b"{}"}
    # A config in the key map is the one that counts, and the one that travels on.
    (tmp_path / "key_map.json").write_text(json.dumps(KEY_MAP))
    source = open_source(tmp_path)
    assert json.loads(source.files()["config.json"]) == source.config == {"model_type": "llama"}


def test_a_key_map_may_be_given_itself_and_name_a_checkpoint_elsewhere(tmp_path: Path) -> None:
    directory = write(tmp_path / "there")
    here = tmp_path / "mine.json"
    here.write_text(json.dumps(KEY_MAP | {"checkpoint": str(directory / "checkpoint")}))
    assert open_source(here).read("norm.weight")[3] == 1
    # Found in a directory that came from somewhere, the same path would be somebody else's choice.
    (tmp_path / "key_map.json").write_text(here.read_text())
    with pytest.raises(InvalidInputError, match="expected a path inside the directory"):
        open_source(tmp_path)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    write(tmp_path)
    with pytest.raises(NotFoundError, match=r"an Orbax checkpoint without key_map\.json"):
        open_source(tmp_path / "checkpoint")
    with pytest.raises(InvalidInputError, match="step, which the key map does not name"):
        open_source(write(tmp_path / "all", ignore=[]))
    shutil.rmtree(tmp_path / "checkpoint")
    with pytest.raises(NotFoundError, match="no such directory"):
        open_source(tmp_path)


def test_damage_is_one_clear_error(tmp_path: Path) -> None:
    write(tmp_path, save_v1_files)
    source = open_source(tmp_path)
    (tmp_path / "checkpoint" / "state" / "params.scale" / "c" / "0").unlink()
    with pytest.raises(InvalidInputError, match="Orbax checkpoint"):
        source.read("norm.weight")
    (tmp_path / "checkpoint" / "state" / "_METADATA").write_text("{")
    with pytest.raises(InvalidInputError, match=r"Orbax checkpoint .*no arrays"):
        open_source(tmp_path)


def test_one_array_is_read_and_no_other(tmp_path: Path) -> None:
    """A damaged neighbour goes unnoticed, so it was not read."""
    write(tmp_path, save_v1_files)
    shutil.rmtree(tmp_path / "checkpoint" / "state" / "params.layers_1.kernel" / "c")
    tree = read_tree(tmp_path / "checkpoint")
    np.testing.assert_array_equal(
        read_array(tmp_path / "checkpoint", tree, "params.layers_0.kernel"),
        TREE["params"]["layers_0"]["kernel"],
    )
