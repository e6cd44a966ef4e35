"""What `endor doctor` says of the compiled kernels, built and not built."""

from __future__ import annotations

import pytest

from endor_jax import native
from endor_jax.cli.doctor import examine


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
