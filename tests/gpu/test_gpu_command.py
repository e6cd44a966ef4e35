"""`.ci/gpu`, with a Python that is a fake: a step that fails does not end the others; no GPU is said."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from tests.places import on_this_device

ROOT = Path(__file__).parents[2]
FAKE = r"""#!/usr/bin/env bash
echo "$*" >> "$CALLS"
case "$*" in
  *compute_capability*) exit "${NO_HOPPER:-0}" ;;
  *jax.devices*) echo "== jax 0 gpu: fake"; exit "${NO_GPU:-0}" ;;
  *native.available*) exit "${NO_EXTENSION:-0}" ;;
  *pytest*test_expand_conformance*) echo "1 failed"; exit "${CONFORMANCE:-0}" ;;
  *pytest*test_mosaic_on_device*) exit "${MOSAIC:-0}" ;;
  *"--implementation mosaic"*) exit 0 ;;
  *"bench expand"*) echo "a table"; echo "a note" >&2; exit "${EXPAND:-0}" ;;
esac
"""


def command(tmp_path: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs it with a Python that only notes how it was called."""
    fake = tmp_path / "python"
    fake.write_text(FAKE)
    fake.chmod(0o755)
    variables = {"PYTHON": str(fake), "CALLS": str(tmp_path / "calls")} | variables
    return subprocess.run(
        ["bash", ".ci/gpu", *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env=dict(os.environ) | variables,
    )


def calls(tmp_path: Path, *words: str) -> list[str]:
    return [line for line in (tmp_path / "calls").read_text().splitlines() if all(w in line for w in words)]


def test_all_steps_run_and_leave_few_files(tmp_path: Path) -> None:
    done = command(tmp_path, str(tmp_path / "out"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "== all succeeded: conformance tests expand linear mosaic"
    assert sorted(each.name for each in (tmp_path / "out").iterdir()) == [
        "expand.txt",
        "linear.txt",
        "log.txt",
        "mosaic.txt",
    ]
    assert (tmp_path / "out" / "expand.txt").read_text() == "a table\n"
    assert "a note" in (tmp_path / "out" / "log.txt").read_text()
    (kernels,) = calls(tmp_path, "-m gpu", "tests/kernels/test_expand_conformance.py")
    assert "tests/kernels/test_linear_product.py" in kernels
    assert "tests/gpu/" not in kernels
    (others,) = calls(tmp_path, "-m gpu", "-n 0", "tests/gpu/test_on_device.py")
    assert "tests/streaming/test_transfer_gpu.py" in others
    assert "tests/kernels" not in others
    assert "mosaic" not in kernels + others
    (unproven,) = calls(tmp_path, "-m gpu", "tests/gpu/test_mosaic_on_device.py")
    assert "tests/kernels" not in unproven
    (timed,) = calls(tmp_path, "bench expand", "--implementation mosaic")
    assert f"--record {tmp_path / 'out'}/mosaic.json" in timed
    (linear,) = calls(tmp_path, "bench linear")
    out = tmp_path / "out"
    assert f"--minutes 8 --record {out}/linear.json --plot {out}/linear.svg" in linear


def test_a_step_that_fails_does_not_end_the_others_and_is_said(tmp_path: Path) -> None:
    done = command(tmp_path, str(tmp_path / "out"), CONFORMANCE="1", EXPAND="3", ENDOR_GPU_MINUTES="2")
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1] == "== failed: conformance expand"
    assert "== expand: exit code 3 after" in done.stdout
    assert "1 failed" in (tmp_path / "out" / "log.txt").read_text()
    assert calls(tmp_path, "bench linear --minutes 2")


def test_where_there_is_no_hopper_its_kernel_is_left_out(tmp_path: Path) -> None:
    done = command(tmp_path, str(tmp_path / "out"), "mosaic", NO_HOPPER="1", ENDOR_COMMIT="abc")
    assert done.returncode == 0
    assert "== mosaic: left out, this is no Hopper GPU" in done.stdout
    assert not calls(tmp_path, "pytest")
    assert not calls(tmp_path, "bench")
    assert (tmp_path / "out" / "log.txt").read_text().startswith("== commit abc\n")


def test_a_kernel_that_is_wrong_is_not_timed(tmp_path: Path) -> None:
    done = command(tmp_path, str(tmp_path / "out"), "mosaic", MOSAIC="1")
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1] == "== failed: mosaic"
    assert not calls(tmp_path, "bench expand")


def test_steps_can_be_chosen(tmp_path: Path) -> None:
    done = command(tmp_path, str(tmp_path / "out"), "linear", CONFORMANCE="1")
    assert done.returncode == 0
    assert calls(tmp_path, "bench linear")
    assert not calls(tmp_path, "-m pytest")
    wrong = command(tmp_path, str(tmp_path / "out"), "linaer")
    assert wrong.returncode == 2
    assert "no step 'linaer'; there are: conformance tests expand linear mosaic" in wrong.stderr


def test_an_extension_that_is_missing_is_built_and_if_it_cannot_be_that_is_said(tmp_path: Path) -> None:
    done = command(tmp_path, str(tmp_path / "out"), "linear", NO_EXTENSION="1")
    assert done.returncode == 0
    assert calls(tmp_path, "setup.py", "build_ext --inplace")
    assert "it could not be built: NumPy encodes" in done.stdout
    assert calls(tmp_path, "bench linear")


@pytest.mark.skipif(jax.default_backend() == "gpu", reason="there is a GPU")
def test_without_a_gpu_it_says_so_and_does_nothing(tmp_path: Path) -> None:
    done = command(tmp_path, str(tmp_path / "out"), PYTHON=sys.executable)
    assert done.returncode == 3, done.stdout + done.stderr
    assert "== no GPU: JAX does not compute on one here" in done.stdout.splitlines()[-1]
    assert (tmp_path / "out" / "log.txt").exists()


def test_without_a_directory_it_says_how_it_is_called(tmp_path: Path) -> None:
    done = command(tmp_path)
    assert done.returncode == 2
    assert "bash .ci/gpu DIRECTORY [STEP...]" in done.stderr


@pytest.mark.parametrize(("platform", "marked"), [("gpu", True), ("cpu", False), ("tpu", False)])
def test_the_conformance_suites_are_tests_of_the_gpu_where_there_is_one(platform: str, marked: bool) -> None:
    parameters = on_this_device(["triton", None, "xla", "triton"], platform=platform)
    assert [each.values for each in parameters] == [("triton",), (None,), ("xla",)]
    assert [each.id for each in parameters] == ["triton", "None", "xla"]
    for each in parameters:
        assert [mark.name for mark in each.marks] == (["gpu"] if marked else [])
