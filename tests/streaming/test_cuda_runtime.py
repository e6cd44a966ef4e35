"""The CUDA runtime: found where it is, errors in its own words, the thread's device left as it was."""

from __future__ import annotations

from pathlib import Path

import pytest

from endor_jax.errors import UnsupportedError
from endor_jax.memory import aligned_buffer
from endor_jax.streaming import cuda_runtime
from endor_jax.streaming.cuda_runtime import find_runtime, load_runtime, runtime_paths, unclaimed_bytes
from endor_jax.streaming.pinning import pin
from tests.streaming.fake_cudart import FakeCuda, compile_fake_cudart


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_fake_cudart(tmp_path_factory.mktemp("cuda"))


@pytest.fixture
def cuda(library: Path) -> FakeCuda:
    return FakeCuda(library)


def test_the_current_device_is_set_and_set_back(cuda: FakeCuda) -> None:
    with cuda.runtime.on_device(3):
        pin([aligned_buffer(4096)], ordinal=2, runtime=cuda.runtime).close()
    assert [call.number for call in cuda.of("cudaSetDevice")] == [3, 2, 3, 0]
    names = [call.name for call in cuda.calls]
    assert names.index("cudaHostRegister") == 4  # get, set 3, get, set 2, register


def test_no_driver_is_cudas_own_message(cuda: FakeCuda) -> None:
    cuda.fail("cudaGetDevice", code=35)
    with pytest.raises(UnsupportedError, match=r"cudaGetDevice of .*: got cudaErrorOther \(something else\)"):
        pin([aligned_buffer(4096)], runtime=cuda.runtime)
    assert not cuda.of("cudaHostRegister")


def test_a_runtime_that_cannot_be_loaded_says_why(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=r"CUDA runtime .*absent.*expected a libcudart; install jax"):
        load_runtime(str(tmp_path / "absent.so"))
    with pytest.raises(UnsupportedError, match=r"libc\.so\.6: got .*cudaGetDevice.*, expected a libcudart"):
        load_runtime("libc.so.6")


def test_the_first_runtime_that_loads_is_taken(tmp_path: Path, library: Path) -> None:
    absent = str(tmp_path / "absent.so")
    assert find_runtime([absent, str(library)]).path == str(library)
    with pytest.raises(
        UnsupportedError, match=r"pinned memory: got no CUDA runtime \(.*absent\.so.*\), expected"
    ):
        find_runtime([absent])


def test_runtimes_are_looked_for_in_the_process_then_in_wheels_then_in_the_system(
    cuda: FakeCuda, library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = [
        tmp_path / "nvidia/cuda_runtime/lib/libcudart.so.12",
        tmp_path / "nvidia/cu13/lib/libcudart.so.13",
    ]
    for place in places:
        place.parent.mkdir(parents=True)
        place.touch()
    monkeypatch.syspath_prepend(tmp_path)
    paths = runtime_paths()
    assert str(library) in paths[: paths.index(str(places[1]))]  # loaded, by the fixture
    assert [path for path in paths if str(tmp_path / "nvidia") in path] == [str(places[1]), str(places[0])]
    assert paths[-2:] == cuda_runtime.SONAMES


def test_unclaimed_memory_is_that_of_the_named_device(cuda: FakeCuda) -> None:
    assert unclaimed_bytes(cuda.runtime, 1) == 5 << 32  # more than an int holds
    assert [call.name for call in cuda.calls][1:3] == ["cudaSetDevice", "cudaMemGetInfo"]
    assert [call.number for call in cuda.of("cudaSetDevice")] == [1, 0]
