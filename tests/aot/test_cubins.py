"""The GPU kernels become machine code, with no GPU: no spills, wide stores, few instructions, no copies.

BUILD.md says what to install; elsewhere these skip. `tests/aot/record.py` writes the same figures down.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.aot import cases
from tests.aot.cases import Case
from tests.aot.compiler import Compiler, compiler, missing
from tests.aot.limits import broken_limits

pytestmark = [pytest.mark.aot, pytest.mark.skipif(missing() is not None, reason=str(missing()))]


@pytest.fixture(scope="module")
def aot() -> Iterator[Compiler]:
    with compiler() as opened:
        yield opened


@pytest.mark.parametrize("case", cases.every(), ids=str)
def test_what_is_compiled_keeps_the_limits(aot: Compiler, case: Case) -> None:
    assert broken_limits(case, aot.compile(case)) == []
