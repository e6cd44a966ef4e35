"""What `endor doctor` says of the compiled kernels, built and not built."""

from __future__ import annotations

import pytest

from endor_jax import native
from endor_jax.cli.doctor import examine
from endor_jax.errors import UnsupportedError


@pytest.mark.skipif(not native.available(), reason="the extension was not built")
def test_instruction_sets_are_listed_best_first() -> None:
    listed = examine()["compiled_kernels"].split(", ")
    assert listed == list(native.instruction_sets())
    assert listed[-1] == "scalar"


def test_missing_kernels_are_said_with_the_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "available", lambda: False)
    monkeypatch.setattr(native, "instruction_sets", lambda: ())
    said = examine()
    assert said["compiled_kernels"].startswith("not built: no C++ compiler when endor_jax was installed")
    assert "XLA serves" in said["compiled_kernels"]
    assert "install g++ or clang++" in said["compiled_kernels"]
    assert "cpu: xla" in said["expand"]


def test_a_library_that_does_not_load_is_said_and_the_rest_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> tuple[str, ...]:
        raise UnsupportedError("compiled extension", got="no library", expected="one", fix="install again")

    monkeypatch.setattr(native, "available", lambda: True)
    monkeypatch.setattr(native, "instruction_sets", broken)
    said = examine()
    assert (
        said["compiled_kernels"]
        == "built, but compiled extension: got no library, expected one; install again"
    )
    assert "cpu: xla" in said["expand"]
