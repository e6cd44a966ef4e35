"""Trees of parameters: leaves by name, the tree's shape as JSON, and the tree built again from both."""

from __future__ import annotations

import collections
import json
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from endor_jax.errors import InvalidInputError
from endor_jax.format.tree import named_leaves, rebuild, rebuild_like, tree_shape

Pair = collections.namedtuple("Pair", ["first", "second"])


def trees() -> st.SearchStrategy[Any]:
    keys = st.text(st.characters(codec="ascii", categories=("L", "N")), min_size=1, max_size=3)
    return st.recursive(
        st.integers(0, 9) | st.none(),
        lambda inner: (
            st.dictionaries(keys, inner, max_size=3)
            | st.lists(inner, max_size=3)
            | st.lists(inner, max_size=3).map(tuple)
        ),
        max_leaves=8,
    )


@given(trees())
def test_a_tree_is_built_again_from_its_json_shape(tree: Any) -> None:
    leaves = named_leaves(tree)
    assert list(leaves.values()) == jax.tree.leaves(tree)
    shape = json.loads(json.dumps(tree_shape(tree)))
    if shape is not None:
        assert rebuild(shape, leaves) == tree
        assert jax.tree.structure(rebuild(shape, leaves)) == jax.tree.structure(tree)
    shuffled = dict(sorted(leaves.items(), reverse=True))
    assert rebuild_like(tree, shuffled) == tree


def test_names_are_dotted_paths() -> None:
    tree = {"mlp": {"up": 1, "down": 2}, "heads": [3, (4,)]}
    assert named_leaves(tree) == {"heads.0": 3, "heads.1.0": 4, "mlp.down": 2, "mlp.up": 1}
    assert named_leaves(7) == {"value": 7}
    assert tree_shape(7) == "value"
    assert tree_shape(tree) == {
        "dict": {
            "heads": {"list": ["heads.0", {"tuple": ["heads.1.0"]}]},
            "mlp": {"dict": {"down": "mlp.down", "up": "mlp.up"}},
        }
    }


def test_one_name_for_two_leaves_is_refused() -> None:
    with pytest.raises(InvalidInputError, match=r"got two leaves named 'a\.b', .* use keys without dots"):
        named_leaves({"a": {"b": 1}, "a.b": 2})


@pytest.mark.parametrize(
    "tree",
    [
        Pair(1, 2),
        {"x": Pair(1, 2)},
        [collections.OrderedDict(a=1)],
        {1: "one", 0: "zero"},
        [{"a": 1}, {2: 3}],
    ],
)
def test_containers_that_json_cannot_tell_have_no_shape(tree: Any) -> None:
    assert tree_shape(tree) is None
    leaves = named_leaves(tree)
    assert jax.tree.structure(rebuild_like(tree, leaves)) == jax.tree.structure(tree)
    assert jax.tree.leaves(rebuild_like(tree, leaves)) == jax.tree.leaves(tree)


def test_rebuild_like_takes_leaves_by_name() -> None:
    like = {"a": np.zeros(3), "b": [0, 0]}
    assert rebuild_like(like, {"b.1": "y", "a": "z", "b.0": "x"}) == {"a": "z", "b": ["x", "y"]}
    with pytest.raises(InvalidInputError, match=r"that lack \['b.1'\] and add \['c'\]"):
        rebuild_like(like, {"a": 1, "b.0": 2, "c": 3})
