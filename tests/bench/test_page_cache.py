"""The page cache: what is dropped is gone, what is read is there, and the count tells."""

from __future__ import annotations

import mmap
import sys
from pathlib import Path

import pytest

from endor_jax.bench import page_cache
from endor_jax.errors import EndorError, UnsupportedError

PAGES = 64
linux = pytest.mark.skipif(sys.platform != "linux", reason="the page cache is told about on Linux only")


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, ...]:
    for name in ("a", "below/b"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x" * (PAGES * mmap.PAGESIZE - 7))
    (tmp_path / "empty").touch()
    return page_cache.files_below(tmp_path)


@linux
def test_files_are_dropped_and_read_in_again(files: tuple[Path, ...]):
    assert [path.name for path in files] == ["a", "b"]
    page_cache.write_back(files)
    page_cache.drop(files)
    if page_cache.cached_share(files) == 1.0:
        pytest.skip("a file system in memory: its files cannot be dropped")
    assert page_cache.cached_share(files) == 0.0
    page_cache.fill(files[:1])
    assert page_cache.cached_share(files[:1]) == 1.0
    assert page_cache.cached_share(files) == 0.5


@linux
def test_pages_that_are_mapped_stay_and_are_counted(files: tuple[Path, ...]):
    page_cache.write_back(files)
    with files[0].open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        assert sum(mapped[:: mmap.PAGESIZE]) == PAGES * ord("x")
        page_cache.drop(files)
        assert page_cache.cached_share(files[:1]) == 1.0


def test_no_files_have_nothing_cached():
    assert page_cache.cached_share(()) == 0.0


@linux
def test_a_system_that_does_not_tell_is_an_error(files: tuple[Path, ...], monkeypatch: pytest.MonkeyPatch):
    class Libc:
        @staticmethod
        def mincore(*arguments: object) -> int:
            return -1

    monkeypatch.setattr(page_cache.ctypes, "CDLL", lambda *arguments, **options: Libc)
    with pytest.raises(EndorError, match=r"page cache, .*a: got .*, expected a count of its pages"):
        page_cache.cached_share(files)


def test_elsewhere_than_on_linux_it_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(page_cache.sys, "platform", "darwin")
    with pytest.raises(UnsupportedError, match="page cache: got darwin, expected Linux"):
        page_cache.check_page_cache()
