"""Files of answers, one JSON object per line, appended as each ends: a batch that was killed goes on from it.

A line begins with a key: digests of the prompt's ids, of the settings that decide on what is made of it, and
of the checkpoint. When a batch begins, a line with the id and key of one of its prompts is its answer.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import stat
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from endor_jax.errors import DestinationBusyError, DestinationExistsError, ResumeError

if TYPE_CHECKING:
    from endor_jax.generate.continuation import Wishes

_BEGINNING = b'{"key": "'


@dataclass(frozen=True)
class Asked:
    """What an answer belongs to: the prompt's id, and the digests that a line's key is made of."""

    id: Any
    prompt: str
    settings: str
    checkpoint: str

    @property
    def key(self) -> str:
        """What says in a line whose answer it is."""
        return f"{self.prompt}-{self.settings}-{self.checkpoint}"


def asked(name: Any, ids: Sequence[int], wishes: Wishes, *, checkpoint_digest: str) -> Asked:
    """What the answer to a prompt with an id and some token ids belongs to."""
    from endor_jax.store.digest import digest_json

    return Asked(name, digest_json({"ids": list(ids)}), digest_json(asdict(wishes)), checkpoint_digest)


class Answers:
    """A file of answers, locked while it is open. `close` twice is fine.

    kept: the answers that were there, by the place of their prompt in `batch`. A torn last line, of a process
    that was killed while it wrote it, is cut off. resume: whether the file may exist already.
    Raises DestinationExistsError if it may not, or is no file of answers; DestinationBusyError if another
    process has it open; ResumeError, naming what differs, if a line answers nothing in `batch`.
    """

    def __init__(self, name: str, batch: Sequence[Asked], *, resume: bool):
        self._name, self._batch = name, tuple(batch)
        self._handle: int | None = _locked(name, resume=resume)
        try:
            with open(self._handle, "rb", closefd=False) as file:
                *lines, torn = file.read().split(b"\n")
            # Neither may anything else be cut off.
            if not (torn.startswith(_BEGINNING) or _BEGINNING.startswith(torn)):
                raise _not_ours(name, "a last line that is no answer")
            self.kept = self._matched([self._answer(i, line) for i, line in enumerate(lines, 1)])
            os.ftruncate(self._handle, sum(len(line) + 1 for line in lines))
        except BaseException:
            self.close()
            raise

    def _answer(self, number: int, line: bytes) -> dict[str, Any]:
        try:
            answer = json.loads(line)
        except (ValueError, RecursionError):
            answer = None
        if not line.startswith(_BEGINNING) or not isinstance(answer, dict) or "id" not in answer:
            raise _not_ours(self._name, f"line {number} that is no answer")
        return answer

    def _matched(self, answers: Sequence[Mapping[str, Any]]) -> dict[int, dict[str, Any]]:
        waiting: dict[tuple[str, str], list[int]] = defaultdict(list)
        for index, own in enumerate(self._batch):
            waiting[json.dumps(own.id), own.key].append(index)
        kept = {}
        for number, answer in enumerate(answers, 1):
            own = waiting[json.dumps(answer["id"]), str(answer["key"])]
            if not own:
                shown = json.dumps(answer["id"], ensure_ascii=False)
                raise ResumeError(
                    f"output {self._name}, line {number}",
                    got=f"an answer to id {shown} {_why(answer, self._batch)}",
                    expected="answers of this batch",
                    fix="go on as it was begun, or choose another --output",
                )
            kept[own.pop(0)] = {name: value for name, value in answer.items() if name != "key"}
        return kept

    def add(self, index: int, answer: Mapping[str, Any]) -> None:
        """Appends the answer to a prompt of the batch; when this returns it is on disk."""
        assert self._handle is not None, "the file is closed"
        line = json.dumps({"key": self._batch[index].key} | dict(answer), ensure_ascii=False) + "\n"
        rest = memoryview(line.encode())
        while rest:
            rest = rest[os.write(self._handle, rest) :]
        os.fsync(self._handle)

    def close(self) -> None:
        """Lets go of the file."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def __enter__(self) -> Answers:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _why(answer: Mapping[str, Any], batch: Sequence[Asked]) -> str:
    """In what an answer differs from the one that is wanted for its id."""
    same = [own for own in batch if own.id == answer["id"]]
    pieces = str(answer["key"]).split("-")
    if not same or len(pieces) != 3:
        return "that nobody asks for"
    wanted = same[0].prompt, same[0].settings, same[0].checkpoint
    names = ("another prompt", "other settings", "another checkpoint")
    other = [name for name, new, old in zip(names, wanted, pieces, strict=True) if new != old]
    return f"from {' and '.join(other)}" if other else "more often than it is asked for"


def _locked(name: str, *, resume: bool) -> int:
    """A descriptor of the file, made if it is missing and locked for this process alone."""
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK | (0 if resume else os.O_EXCL)
    try:
        handle = os.open(name, flags, 0o666)
    except FileExistsError as error:
        raise DestinationExistsError(
            f"output {name}",
            got="a file that exists",
            expected="a path where nothing is yet",
            fix="choose another path, or go on with what is there (without --no-resume)",
        ) from error
    except OSError as error:
        if error.errno in (errno.EISDIR, errno.ENXIO):
            raise _not_ours(name, "something that is no file") from error
        raise
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise _not_ours(name, "something that is no file")
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(handle)
        raise DestinationBusyError(
            f"output {name}",
            got="another process writing there",
            expected="one writer",
            fix="wait until it is done, or choose another path",
        ) from error
    except BaseException:
        os.close(handle)
        raise
    return handle


def _not_ours(name: str, got: str) -> DestinationExistsError:
    return DestinationExistsError(
        f"output {name}",
        got=got,
        expected="a file of answers, or nothing yet",
        fix="choose another path, or remove it first",
    )
