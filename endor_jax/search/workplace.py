"""The directory of a search, beside its destination: what was tried, and the tries that are still needed.

`DST.search` holds the checkpoints that are under way (`dense`, `0.56`), the losses of the dense one, and the
journal of the search, which is locked while somebody works there. What the journal says is done stays done;
directories that it makes needless are removed, at once or when the search is begun again.
"""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from jaxtyping import Float

from endor_jax.errors import CorruptCheckpointError, DestinationExistsError
from endor_jax.search.bisection import HIGHEST, LOWEST, best_percent
from endor_jax.search.result import Quality, Try, holds, lowered_limit, try_entry, try_of
from endor_jax.store.destination import check_job
from endor_jax.store.digest import digest_bytes
from endor_jax.store.files import sync_directory
from endor_jax.store.journal import JOURNAL_VERSION, Entry, Journal, peek_lines
from endor_jax.store.manifest import JOURNAL_FILE, MANIFEST_FILE

LOSSES_FILE = "dense_losses.npy"


class Workplace:
    """The directory of one search, locked while it is open. `close` twice is fine.

    job: what must be the same for a search to be gone on with. tries: what is known so far. max_increase: the
    limit that was asked for.
    Raises DestinationExistsError if something else is there, or with resume=False anything;
    DestinationBusyError if somebody works there; ResumeError, naming the difference, if it was another
    search. Nothing is written before all of that is clear.
    """

    def __init__(self, path: Path, job: Entry, *, resume: bool):
        self.path = path
        self._header = {"journal": JOURNAL_VERSION} | dict(job)
        self.max_increase: float = job["max_increase"]
        self._check_before(resume)
        path.mkdir(parents=True, exist_ok=True)
        self._journal = Journal(path)
        try:
            if self._journal.header is None:
                self._journal.start(self._header)
            check_job(path, self._journal.header or {}, self._header)
            entries = self._journal.entries
            self.tries = tries_in(entries, self.max_increase)
            self._dense: Entry | None = _last(entries, "dense")
            self.clear_away()
        except BaseException:
            self.close()
            raise

    def _check_before(self, resume: bool) -> None:
        lines = peek_lines(self.path)
        if not lines:
            if os.path.lexists(self.path) and not _free(self.path):
                raise _exists(self.path, "something that is no search", "choose another destination")
        elif not resume:
            raise _exists(self.path, "what an interrupted search left", "remove it, or go on with it")
        else:
            check_job(self.path, lines[0], self._header)

    @property
    def held(self) -> dict[int, bool]:
        """Whether each percent that was tried holds, within the limit that failed checks have left."""
        limit = lowered_limit(self.tries, self.max_increase)
        return {each.percent: each.held and holds(each.quality, limit) for each in self.tries}

    @property
    def best(self) -> Try | None:
        """The highest try that holds."""
        percent = best_percent(self.held)
        return next((each for each in self.tries if each.percent == percent), None)

    @property
    def dense_path(self) -> Path:
        """Where the dense checkpoint is, until it is scored."""
        return self.path / "dense"

    def try_path(self, percent: int) -> Path:
        """Where the checkpoint of a try is."""
        return self.path / f"{percent / 100:.2f}"

    @property
    def dense_bytes(self) -> int | None:
        """Of all files of the dense checkpoint; None before it is scored."""
        return None if self._dense is None else self._dense["stored_bytes"]

    def dense_losses(self) -> Float[np.ndarray, "blocks targets"]:
        """What `add_dense` was given. Raises CorruptCheckpointError if the file is gone or another."""
        assert self._dense is not None
        path = self.path / LOSSES_FILE
        data = path.read_bytes() if path.is_file() else b""
        if digest_bytes(data) != self._dense["losses"]:
            raise CorruptCheckpointError(
                f"file {path}",
                got=f"digest {digest_bytes(data)}" if data else "no such file",
                expected=f"{self._dense['losses']}, the losses of the dense model",
                fix=f"remove {self.path} and begin the search again",
            )
        return np.load(io.BytesIO(data), allow_pickle=False)

    def add_dense(self, losses: Float[np.ndarray, "blocks targets"], *, stored_bytes: int) -> None:
        """Keeps the losses of the dense checkpoint, which is needed no longer then."""
        path, temporary = self.path / LOSSES_FILE, self.path / f"{LOSSES_FILE}.tmp"
        with temporary.open("wb") as file:
            np.save(file, losses, allow_pickle=False)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_directory(self.path)
        self._dense = {"stored_bytes": stored_bytes, "losses": digest_bytes(path.read_bytes())}
        self._journal.add({"dense": self._dense})
        self.clear_away()

    def add_try(self, made: Try) -> None:
        """Keeps what a try gave; of the checkpoints only the best one's."""
        self._journal.add({"try": try_entry(made)})
        self.tries = (*self.tries, made)
        self.clear_away()

    def add_check(self, percent: int, check: Quality) -> None:
        """Keeps what the check of a try gave."""
        self._journal.add({"check": {"percent": percent} | asdict(check)})
        self.tries = tuple(
            replace(each, check=check, held=each.held and holds(check, self.max_increase))
            if each.percent == percent
            else each
            for each in self.tries
        )
        self.clear_away()

    def clear_away(self) -> None:
        """Removes the checkpoints that are needed no longer."""
        if self._dense is not None:
            _remove(self.dense_path)
        for percent in self.held.keys() - {best_percent(self.held)}:
            _remove(self.try_path(percent))

    def remove(self) -> None:
        """Takes the directory away, the journal last, so that an interruption can be told; and closes it."""
        _remove(self.dense_path)
        for percent in range(LOWEST, HIGHEST + 1):
            _remove(self.try_path(percent))
        (self.path / LOSSES_FILE).unlink(missing_ok=True)
        self._journal.remove()
        if _free(self.path):  # whatever somebody else has put there stays
            self.path.rmdir()

    def close(self) -> None:
        """Lets go of the lock and leaves everything."""
        self._journal.close()

    def __enter__(self) -> Workplace:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def tries_in(entries: Iterable[Entry], max_increase: float) -> tuple[Try, ...]:
    """The tries that a journal has, with their checks."""
    entries, checks = tuple(entries), dict[int, Quality]()
    for entry in entries:
        if "check" in entry:
            percent, figures = entry["check"]["percent"], dict(entry["check"])
            del figures["percent"]
            checks[percent] = Quality(**figures)
    tries = [entry["try"] for entry in entries if "try" in entry]
    return tuple(try_of(each, max_increase, checks.get(each["percent"])) for each in tries)


def is_finished(path: Path) -> bool:
    """Whether a conversion to a path is done, the removal of its own journal included."""
    return (path / MANIFEST_FILE).is_file() and not (path / JOURNAL_FILE).exists()


def _last(entries: Iterable[Entry], name: str) -> Any:
    """The member of this name in the last entry that has it."""
    return next((entry[name] for entry in reversed(tuple(entries)) if name in entry), None)


def _free(path: Path) -> bool:
    """Whether nothing is in a directory but a journal that was cut off in its first line."""
    return path.is_dir() and not {entry.name for entry in path.iterdir()} - {JOURNAL_FILE}


def _remove(path: Path) -> None:
    if path.exists():
        shutil.rmtree(path)


def _exists(path: Path, got: str, fix: str) -> DestinationExistsError:
    return DestinationExistsError(
        f"place of the search {path}", got=got, expected="a path where nothing is yet", fix=fix
    )
