"""Where a checkpoint is: a local path, or a place in an object store, told apart by how the text begins."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from endor_jax.errors import InvalidInputError, UnsupportedError

SCHEMES = ("s3", "gs")

_URL = re.compile(r"([a-z][a-z0-9+.-]*)://(.*)", re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True)
class ObjectPath(os.PathLike[str]):
    """A prefix of the objects in a bucket; with `/`, one below it. Its text is the URL.

    key: segments with "/" between them, none at the ends; empty for the whole bucket.
    """

    scheme: str
    bucket: str
    key: str

    def __truediv__(self, name: str) -> ObjectPath:
        return ObjectPath(self.scheme, self.bucket, f"{self.key}/{name}" if self.key else name)

    def __str__(self) -> str:
        return f"{self.scheme}://{self.bucket}/{self.key}"

    def __fspath__(self) -> str:
        """The URL, so that whatever takes a path of a checkpoint takes this. No file has this name."""
        return str(self)

    @property
    def name(self) -> str:
        """The last segment."""
        return self.key.rpartition("/")[2] or self.bucket


Location: TypeAlias = Path | ObjectPath
"""Where a checkpoint is, or one of its files."""


def locate(path: str | os.PathLike[str]) -> Location:
    """The place that a text, a path or a URL (`s3://bucket/prefix`, `gs://bucket/prefix`) names.

    Raises UnsupportedError for another kind of URL, InvalidInputError for one that names no place. What may
    be a secret in it, a password or a signature, is not repeated.
    """
    if isinstance(path, ObjectPath):
        return path
    text = os.fspath(path)
    squeezed = re.match(rf"({'|'.join(SCHEMES)}):/[^/]", text)
    if squeezed and not isinstance(path, str):  # pathlib makes one slash of two
        raise InvalidInputError(
            f"path {text}",
            got="a URL that pathlib.Path has changed",
            expected=f"{squeezed[1]}:// with both slashes",
            fix="pass the URL as text",
        )
    match = _URL.fullmatch(text)
    if match is None:
        return Path(path)
    scheme, rest = match[1].lower(), match[2]
    if scheme not in SCHEMES:
        raise UnsupportedError(
            f"a URL that begins with {scheme}://",
            got="a kind of place that is not known",
            expected="a local path, s3://bucket/prefix or gs://bucket/prefix",
            fix="copy it to one of these first",
        )
    return _object_path(scheme, rest)


def _object_path(scheme: str, rest: str) -> ObjectPath:
    bucket, _, key = rest.partition("/")
    key = key.strip("/")
    if not re.fullmatch(r"[A-Za-z0-9._-]+", bucket):
        got = "a user or a password" if "@" in bucket else "no name of a bucket"
    elif re.search(r"[?#]", key):
        got = "a query or a fragment"
    elif any(segment in ("", ".", "..") for segment in key.split("/")) and key:
        got = "an empty segment, '.' or '..'"
    else:
        return ObjectPath(scheme, bucket, key)
    raise InvalidInputError(
        f"a URL that begins with {scheme}://",
        got=f"{got} in it",
        expected=f"{scheme}://bucket/prefix, and nothing else",
        fix="leave it out; credentials come from the environment (docs/object-stores.md)",
    )


def local_path(path: str | os.PathLike[str], what: str) -> Path:
    """A place that can only be local. what: for whom. Raises UnsupportedError for an object store."""
    place = locate(path)
    if isinstance(place, Path):
        return place
    raise UnsupportedError(
        f"{what} {place}",
        got="a place in an object store",
        expected="a local path",
        fix="copy it to or from there with the tools of the store",
    )
