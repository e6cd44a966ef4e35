"""The files of cases that driver.cc reads."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kernels.native import case_files


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cases") / "all"
    case_files.write(path, list(case_files.cases(large=True)))
    return path


@pytest.fixture(scope="module")
def small_cases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Without the one that takes long to damage many times."""
    path = tmp_path_factory.mktemp("cases") / "small"
    case_files.write(path, list(case_files.cases(large=False)))
    return path
