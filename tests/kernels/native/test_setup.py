"""setup.py: which flags a source is compiled with, and what is said where there is no compiler."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from tests.kernels.native.building import ROOT, SETUP

CompileError = SETUP["CompileError"]


def test_only_sources_for_an_instruction_set_are_compiled_for_it() -> None:
    for machine in ("x86_64", "aarch64", "arm64"):
        special = {
            path.stem for path in SETUP["sources"]() if SETUP["flags_of"](path, machine) != SETUP["FLAGS"]
        }
        expected = (
            {name for name in special if name.endswith(("_avx2", "_avx512"))}
            if machine == "x86_64"
            else set()
        )
        assert special == expected
    assert "-mavx512vbmi2" in SETUP["flags_of"](Path("isa_avx512.cc"), "x86_64")
    assert "-mavx512f" not in SETUP["flags_of"](Path("isa_avx2.cc"), "x86_64")


def test_headers_are_those_of_the_oldest_supported_jaxlib() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    (built_with,) = re.findall(r'"jaxlib==([\d.]+);', text)
    assert f'"jaxlib>={built_with}"' in text


def test_the_compiler_is_the_one_that_cxx_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "ccache g++-13")
    assert SETUP["compiler"]() == ["ccache", "g++-13"]


def test_no_compiler_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(CompileError, match=r"no C\+\+ compiler: no g\+\+, clang\+\+ or c\+\+ in the path"):
        SETUP["compiler"]()


def test_a_compiler_that_cannot_be_started_is_named() -> None:
    with pytest.raises(CompileError, match="cannot start /nowhere/g"):
        SETUP["run"](["/nowhere/g++", "-c", "a.cc"])


def test_what_a_failing_compiler_printed_is_said() -> None:
    with pytest.raises(CompileError, match=r"(?s)failed:\nerror: no such header"):
        SETUP["run"]([sys.executable, "-c", "raise SystemExit('error: no such header')"])


def test_missing_headers_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(CompileError, match="jaxlib, which has XLA's headers, is not installed"):
        SETUP["xla_headers"]()
