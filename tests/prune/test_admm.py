"""ADMM against loops over its algorithms; its counts, its error beside others', what it refuses."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from endor_jax.errors import InvalidInputError
from endor_jax.prune.admm import admm
from endor_jax.prune.magnitude import apply_mask
from endor_jax.prune.sparsegpt import sparsegpt
from endor_jax.prune.structure import MATRIX, ROW, Structure, drop_count, parse_structure
from endor_jax.prune.wanda import wanda
from tests.prune import transcriptions
from tests.prune.problems import TWO_OF_FOUR, assert_sound, error, problem, share

STRUCTURES = [ROW, MATRIX, TWO_OF_FOUR, parse_structure("2:3")]


@pytest.mark.parametrize("structure", STRUCTURES, ids=lambda structure: structure.name)
@pytest.mark.parametrize("sparsity", [0.3, 0.77])
def test_equals_loops_over_the_algorithms(structure: Structure, sparsity: float) -> None:
    weight, gram = problem(int(sparsity * 100), columns=31)
    result = admm(weight, gram, sparsity=share(structure, sparsity), structure=structure)
    expected, mask = transcriptions.admm(weight, gram, share(structure, sparsity), structure)
    np.testing.assert_array_equal(np.asarray(result.mask), mask)
    np.testing.assert_allclose(np.asarray(result.weight), expected, rtol=1e-4, atol=1e-4)
    assert_sound(result)


@pytest.mark.parametrize("structure", STRUCTURES, ids=lambda structure: structure.name)
def test_exactly_the_zeros_asked_for(structure: Structure) -> None:
    weight, gram = problem(1, columns=31)
    gone = ~np.asarray(admm(weight, gram, sparsity=share(structure, 0.4), structure=structure).mask)
    due = drop_count(structure, share(structure, 0.4), weight.shape)
    counted = [gone.sum()] if structure.scope == "matrix" else gone.sum(axis=1)
    assert list(counted) == [due] * len(counted)
    if structure.scope == "group":
        for start in range(0, 31, structure.of):
            group = gone[:, start : start + structure.of]
            missing = drop_count(structure, None, (1, group.shape[1]))
            assert (group.sum(axis=1) == missing).all()


@pytest.mark.parametrize("structure", [ROW, TWO_OF_FOUR], ids=lambda structure: structure.name)
@pytest.mark.parametrize("seed", range(2))
def test_the_error_is_below_wandas_and_near_sparsegpts_or_below(structure: Structure, seed: int) -> None:
    weight, gram = problem(seed, columns=31)
    sparsity = share(structure)
    ours = error(weight, admm(weight, gram, sparsity=sparsity, structure=structure).weight, gram)
    mask = np.asarray(wanda(weight, np.diagonal(gram), sparsity=sparsity, structure=structure))
    assert ours < 0.9 * error(weight, apply_mask(weight, mask), gram)
    assert ours < 1.1 * error(
        weight, sparsegpt(weight, gram, sparsity=sparsity, structure=structure).weight, gram
    )


def test_nothing_changes_where_nothing_goes() -> None:
    weight, gram = problem(2, columns=31)
    result = admm(weight, gram, sparsity=0.0)
    np.testing.assert_allclose(np.asarray(result.weight), weight, rtol=1e-5)


def test_inputs_that_were_never_on_and_weights_that_are_zero() -> None:
    weight, gram = problem(3, columns=31)
    gram[:, 7] = gram[7, :] = 0
    weight[2] = -0.0
    result = admm(weight, gram, sparsity=0.5, structure=ROW)
    assert_sound(result)
    assert not np.asarray(result.mask)[2].any()
    assert not np.asarray(result.mask)[:, 7].any()


def test_one_compilation_whatever_the_sparsity(caplog: pytest.LogCaptureFixture) -> None:
    weight, gram = problem(4, columns=31)
    admm(weight, gram, sparsity=0.2)
    with jax.log_compiles(), caplog.at_level("WARNING"):
        for sparsity in (0.3, 0.5, 0.7):
            admm(weight, gram, sparsity=sparsity, damping=sparsity, iterations=18)
    assert not [message for message in caplog.messages if "Compiling" in message]


def test_what_it_refuses() -> None:
    weight, gram = problem(0, columns=8)
    with pytest.raises(
        InvalidInputError, match=r"got 15 gradual of 14 iterations with damping 0\.1, expected 1"
    ):
        admm(weight, gram, sparsity=0.5, iterations=14)
    with pytest.raises(
        InvalidInputError, match=r"got 15 gradual of 20 iterations with damping 0\.0, expected 1"
    ):
        admm(weight, gram, sparsity=0.5, damping=0.0)
    with pytest.raises(InvalidInputError, match="got sparsity None, expected 0 or more and below 1"):
        admm(weight, gram)
    with pytest.raises(InvalidInputError, match="got calibration sums that are all zero"):
        admm(weight, gram * 0, sparsity=0.5)
