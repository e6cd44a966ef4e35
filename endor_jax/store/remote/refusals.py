"""What an object store refuses, as one error of ours: what it said, what to do, and no secret.

TensorStore's text goes on with the body of the answer, in which a store may repeat what was signed; only its
first line, up to that, is repeated, and what looks like a secret is struck out of it.
"""

from __future__ import annotations

import os
import re

from endor_jax.errors import CorruptCheckpointError, EndorError, NotFoundError, StorageError
from endor_jax.location import ObjectPath

SECRET_VARIABLES = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "GOOGLE_AUTH_TOKEN")

_SECRETS = re.compile(
    r"(?<=//)[^/@\s]+(?=@)"  # user:password@
    r"|(?<=signature=)[^&\s]+|(?<=credential=)[^&\s]+|(?<=token=)[^&\s]+|(?<=accesskeyid=)[^&\s]+"
    r"|\bA(?:KIA|SIA|3T[A-Z0-9]|BIA|CCA|ROA|IDA|GPA|IPA|NPA|NVA)[A-Z0-9]{8,}\b|(?<=bearer )\S+"
    # A secret key of AWS, a signature, a session token: by nothing but their length and characters.
    r"|(?-i:(?<![\w/+])(?=[\w/+]*[A-Z])(?=[\w/+]*[a-z])(?=[\w/+]*[0-9+])[\w/+]{40}(?![\w/+]))"
    r"|\b[0-9a-f]{64}\b|[\w/+]{100,}",
    re.IGNORECASE,
)
_STATUS = re.compile(r"([A-Z][A-Z_]+): (.*)", re.DOTALL)
_CODE = re.compile(r"\[http_response_code='(\d+)'\]")

COPY_AGAIN = "copy the checkpoint there again, or convert it again"
_ACCESS = (
    "check that the credentials are right and may read it, and write it where it is written; for a store "
    "that is not Amazon's, that AWS_ENDPOINT_URL names it (docs/object-stores.md)"
)
_REGION = "set AWS_REGION to the region of the bucket, and see that AWS_ENDPOINT_URL names its store"
_LATER = "see whether the store can be reached, and run it again"


def without_secrets(text: str) -> str:
    """The same text, "***" in the place of everything in it that may be one."""
    for variable in SECRET_VARIABLES:
        if secret := os.environ.get(variable):
            text = text.replace(secret, "***")
    return _SECRETS.sub("***", text)


def said(error: BaseException) -> tuple[str, str]:
    """TensorStore's status ("PERMISSION_DENIED"), and what the store said, in a line without secrets."""
    if isinstance(error, TimeoutError):
        return "DEADLINE_EXCEEDED", "no answer in time"
    whole = str(error)
    match = _STATUS.fullmatch(whole.split(" [", 1)[0].strip())
    status, line = (match[1], match[2]) if match else ("UNKNOWN", whole.split(" [", 1)[0])
    line = " ".join(line.split()) or "nothing"
    if code := _CODE.search(whole):
        line = f"{line.removesuffix('Unknown').rstrip(': ')} (HTTP status {code[1]})".strip()
    return status, without_secrets(line)


def refused(error: BaseException, path: ObjectPath, expected: str) -> EndorError:
    """The error for a request that failed. expected: what it was for. To be raised `from None`: the original
    has the answer's body, and tracebacks show causes."""
    status, line = said(error)
    if status == "NOT_FOUND":
        return NotFoundError(f"object {path}", got=line, expected=expected, fix="check bucket and endpoint")
    if status == "OUT_OF_RANGE":
        return CorruptCheckpointError(
            f"object {path}",
            got=f"an object that ends early ({line})",
            expected="its whole length",
            fix=f"it is truncated; {COPY_AGAIN}",
        )
    return StorageError(f"object {path}", got=line, expected=expected, fix=_fix(status, str(error)))


def _fix(status: str, whole: str) -> str:
    """What to do, by TensorStore's status and its whole text."""
    code = _CODE.search(whole)
    if (code and code[1] in ("301", "307")) or "AuthorizationHeaderMalformed" in whole:
        return _REGION
    denied = status in ("PERMISSION_DENIED", "UNAUTHENTICATED", "INVALID_ARGUMENT", "FAILED_PRECONDITION")
    return _ACCESS if denied else _LATER
