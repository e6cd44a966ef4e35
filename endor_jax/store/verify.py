"""`verify`: every byte of a checkpoint, every invariant of docs/format.md; all problems, not the first one.

Loading a checkpoint finds damage in what it uses, when it uses it. This also finds damage in what no reader
of ours looks at (the index of a shard, the zeros behind a part, white space in the manifest) and mistakes of
whoever wrote the checkpoint, which digests cannot see. Holds one part in memory at a time.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from endor_jax.arrays import array_bytes, round_up
from endor_jax.errors import CorruptCheckpointError, EndorError, IncompleteCheckpointError
from endor_jax.format.check import check_part as check_words
from endor_jax.format.layout import DenseLayout, RecordLayout
from endor_jax.format.stats import TensorStats
from endor_jax.location import Location, ObjectPath, locate
from endor_jax.store.damage import DAMAGED, check_digests, check_file
from endor_jax.store.digest import digest_bytes, digest_chunks
from endor_jax.store.direct import check_length, read_part
from endor_jax.store.files import inside, open_file
from endor_jax.store.manifest import (
    MANIFEST_FILE,
    Manifest,
    Part,
    StoredRecord,
    manifest_bytes,
    size_classes,
)
from endor_jax.store.part import (
    DATA_FILE,
    METADATA_FILE,
    PAGE_BYTES,
    check_index,
    check_part,
)
from endor_jax.store.verified_files import LocalFiles, ObjectFiles

Progress = Callable[[str, int, int], None]
"""(what is being checked, bytes done, bytes in all)"""

WRONG = "whoever wrote this checkpoint made a mistake; convert the source again with this release"


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong. file: relative to the checkpoint. record, tensor: where it is known."""

    file: str
    record: str | None
    tensor: str | None
    got: str
    expected: str
    fix: str

    def __str__(self) -> str:
        where = [f"file {self.file}"]
        where += [f"record {self.record}"] if self.record else []
        where += [f"tensor {self.tensor!r}"] if self.tensor else []
        return f"{', '.join(where)}: got {self.got}, expected {self.expected}; {self.fix}"


@dataclass(frozen=True)
class Report:
    """What `verify` found. notes: what is no damage and yet worth knowing, files that belong to nothing."""

    path: Location
    problems: tuple[Problem, ...]
    notes: tuple[str, ...]
    files: int
    records: int
    bytes_checked: int

    @property
    def ok(self) -> bool:
        """Whether every byte and every invariant is as it should be."""
        return not self.problems


@dataclass
class _Findings:
    """Collects while `verify` goes through a checkpoint."""

    problems: list[Problem] = field(default_factory=list)
    bytes_checked: int = 0

    def add(self, file: str, got: str, expected: str, fix: str, *, record: str | None = None) -> None:
        self.problems.append(Problem(file, record, None, got, expected, fix))

    @contextmanager
    def collecting(self, file: str, record: str | None = None) -> Iterator[None]:
        """Turns damage found inside, and what the system refuses to read, into a problem of `file`."""
        try:
            yield
        except (CorruptCheckpointError, IncompleteCheckpointError) as error:
            self.add(file, error.got, error.expected, error.fix, record=record)
        except EndorError:
            raise
        except OSError as error:
            text = error.strerror or str(error)
            self.add(file, text, "a readable file", "see whether the disk is sound", record=record)


def verify(path: str | os.PathLike[str], progress: Progress | None = None) -> Report:
    """Checks every byte of the checkpoint at `path`; the report holds every problem found.

    path: of a directory, or a URL; of an object store, each part is copied to the temporary directory first.

    Raises NotFoundError if there is no checkpoint, IncompleteCheckpointError if its conversion was not
    finished, UnsupportedError for another format version, StorageError for a store that cannot be reached. A
    damaged manifest is a problem like any other, but then nothing else can be checked.
    """
    root, report, findings = locate(path), progress or (lambda what, done, total: None), _Findings()
    files = ObjectFiles(root) if isinstance(root, ObjectPath) else LocalFiles(root)
    try:
        manifest = files.manifest()
    except CorruptCheckpointError as error:
        findings.add(MANIFEST_FILE, error.got, error.expected, error.fix)
        return Report(root, tuple(findings.problems), (), 1, 0, 0)
    total = manifest.stored_bytes
    report(MANIFEST_FILE, 0, total)
    owners = {f"{p.path}/{METADATA_FILE}": r.name for r in manifest.records for p in r.parts}
    for name in manifest.files:
        with findings.collecting(name, owners.get(name)):
            file, data = files.read(name)
            findings.bytes_checked += len(data)
            check_file(file, manifest, name, data)
    done = 0
    escapes: list[dict[str, int]] = [{} for _ in manifest.signatures]
    for record in manifest.records:
        checking = _Record(files, manifest, record, findings, escapes[record.signature])
        for index, part in enumerate(record.parts):
            report(f"checking {record.name}", done, total)
            checking.check(index, part)
            done += part.length_bytes
        checking.compare_stats()
    _check_signatures(manifest, escapes, findings)
    report("done", total, total)
    known = {*manifest.files, MANIFEST_FILE, *(f"{part.path}/{DATA_FILE}" for part in manifest.parts)}
    return Report(
        root,
        tuple(findings.problems),
        tuple(f"{n} belongs to no record and is not listed" for n in files.names() if n not in known),
        len(known),
        len(manifest.records),
        findings.bytes_checked + len(manifest_bytes(manifest)),
    )


class _Record:
    """The parts of one record, checked one after the other."""

    def __init__(
        self,
        files: LocalFiles | ObjectFiles,
        manifest: Manifest,
        record: StoredRecord,
        findings: _Findings,
        escapes: dict[str, int],
    ):
        self._files, self._manifest, self._record, self._findings = files, manifest, record, findings
        self._escapes = escapes
        self._layout: RecordLayout = manifest.layout(record)
        self._stats: dict[str, TensorStats] = {}
        self._dense: dict[str, str] = {}
        self._whole = True

    def check(self, index: int, part: Part) -> None:
        """Everything about one part: its files, and what its words say."""
        file = f"{part.path}/{DATA_FILE}"
        before = len(self._findings.problems)
        words = None
        with self._findings.collecting(file, self._record.name), self._files.local(part) as root:
            words = self._read(root, part)
            if self._metadata_is_good(part):
                check_index(root / part.path, part.length_bytes, part.chunk_bytes)
        if len(self._findings.problems) > before or words is None:
            self._whole = False  # what damaged bytes say about the format says nothing
            return
        self._check_words(index, file, words)

    def _read(self, root: Path, part: Part) -> np.ndarray:
        """The words of a part whose bytes are those of the manifest."""
        directory = root / part.path
        inside(root, f"{part.path}/{DATA_FILE}")
        check_length(directory, part.length_bytes)
        if self._metadata_is_good(part):
            check_part(directory, part.length_bytes, part.chunk_bytes)
        data = np.empty(part.length_bytes, np.uint8)
        read_part(directory, data)
        self._findings.bytes_checked += (directory / DATA_FILE).stat().st_size
        check_digests(root, self._manifest, part, digest_chunks(data, part.chunk_bytes))
        self._check_tail(directory, part)
        return data.view(np.uint32)

    def _metadata_is_good(self, part: Part) -> bool:
        """Whether TensorStore can be asked: a problem with zarr.json has been noted already."""
        name = f"{part.path}/{METADATA_FILE}"
        return all(problem.file != name for problem in self._findings.problems)

    def _check_tail(self, directory: Path, part: Part) -> None:
        """Zeros from the end of the part to the end of the shard."""
        end = round_up(part.length_bytes, part.chunk_bytes)
        with os.fdopen(open_file(directory / DATA_FILE), "rb") as file:
            file.seek(part.length_bytes)
            tail = np.frombuffer(file.read(end - part.length_bytes), np.uint8)
        found = np.flatnonzero(tail)
        if found.size:
            raise CorruptCheckpointError(
                f"part {directory}",
                got=f"byte {tail[found[0]]:#04x} at {part.length_bytes + int(found[0]):,}, behind the part",
                expected=f"zeros from {part.length_bytes:,} to {end:,}",
                fix=DAMAGED,
            )

    def _check_words(self, index: int, file: str, words: np.ndarray) -> None:
        checked = check_words(words, self._layout, part=index)
        for v in checked.violations:
            problem = Problem(file, self._record.name, v.tensor, v.got, v.expected, WRONG)
            self._findings.problems.append(problem)
        self._whole &= not checked.violations
        for name, stats in checked.stats.items():
            self._stats[name] = self._stats[name] + stats if name in self._stats else stats
            self._escapes[name] = max(self._escapes.get(name, 0), stats.escapes)
        for name, tensor in self._layout.tensors:
            if isinstance(tensor, DenseLayout):
                held = words[tensor.data.start : tensor.data.stop].view(np.uint8)
                digest = digest_bytes(held[: array_bytes(tensor.shape, tensor.dtype)])
                if self._dense.setdefault(name, digest) != digest:
                    problem = Problem(
                        file, self._record.name, name, "another array than in part 0", "the same", WRONG
                    )
                    self._findings.problems.append(problem)

    def compare_stats(self) -> None:
        """The counts in the manifest against those of the data, if all of it could be counted."""
        if not self._whole:
            return
        for name, expected in self._record.stats.items():
            got = self._stats.get(name)
            if got != expected:
                problem = Problem(
                    MANIFEST_FILE,
                    self._record.name,
                    name,
                    f"{expected}",
                    f"{got}, counted in its parts",
                    WRONG,
                )
                self._findings.problems.append(problem)


def _check_signatures(manifest: Manifest, escapes: list[dict[str, int]], findings: _Findings) -> None:
    """Size classes, and escape lists that are as long as their signature says: both become allocations."""
    for index, signature in enumerate(manifest.signatures):
        records = [record for record in manifest.records if record.signature == index]
        parts = [part for record in records for part in record.parts]
        if not parts:
            continue
        name = records[0].name
        classes = size_classes([round_up(part.length_bytes, PAGE_BYTES) for part in parts])
        if any(part.buffer_bytes != min(c for c in classes if c >= part.length_bytes) for part in parts):
            got = f"buffers of {sorted({part.buffer_bytes for part in parts})} bytes in signature {index}"
            findings.add(MANIFEST_FILE, got, f"the size classes {list(classes)}", WRONG, record=name)
        for tensor, layout in signature.layout.tensors:
            longest = escapes[index].get(tensor)
            if findings.problems or longest is None or isinstance(layout, DenseLayout):
                continue  # of a part that was not counted, the list may have been the longest
            if layout.escape_capacity != longest:
                got = f"at most {layout.escape_capacity:,} escapes in signature {index}"
                findings.problems.append(
                    Problem(MANIFEST_FILE, name, tensor, got, f"{longest:,}, the longest list", WRONG)
                )
