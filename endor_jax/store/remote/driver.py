"""How TensorStore reaches an object store: its driver, retries, endpoint and credentials, by the environment.

Nothing of that is an argument, so that no secret can get into a manifest, a journal or a message: keys come
from where TensorStore's drivers take them, and are seen by them alone.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import tensorstore as ts

from endor_jax.errors import InvalidInputError
from endor_jax.location import ObjectPath

REQUESTS = 16
"""Requests under way at once; docs/object-stores.md has what other numbers gave."""
RETRIES = {"max_retries": 6, "initial_delay": "250ms", "max_delay": "8s"}
"""Of answers 5xx and 429 and of connections that are cut, by TensorStore: a quarter of a minute in all."""
DEFAULT_REGION = "us-east-1"
"""Where an endpoint is named and no region is: what most servers that are not Amazon's take."""
DEFAULT_PROFILE = "default"
ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
REGIONS = ("AWS_REGION", "AWS_DEFAULT_REGION")


def open_driver(root: ObjectPath) -> ts.KvStore:
    """A key-value store of the objects below a prefix. Sends nothing yet.

    Raises InvalidInputError for an endpoint that is none, ValueError for what TensorStore refuses.
    """
    spec, context = spec_of(root, os.environ)
    return ts.KvStore.open(spec, context=ts.Context(context)).result()


def spec_of(root: ObjectPath, environment: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """TensorStore's spec and context for a prefix. Raises InvalidInputError for an endpoint that is none."""
    path = f"{root.key}/" if root.key else ""
    if root.scheme == "gs":
        spec: dict[str, Any] = {"driver": "gcs", "bucket": root.bucket, "path": path}
        return spec, {"gcs_request_concurrency": {"limit": REQUESTS}, "gcs_request_retries": RETRIES}
    spec = {"driver": "s3", "bucket": root.bucket, "path": path}
    endpoint = _first(environment, ENDPOINTS)
    if endpoint is not None:
        spec["endpoint"] = _checked(*endpoint)
    region = _first(environment, REGIONS)
    if region is not None or endpoint is not None:
        spec["aws_region"] = DEFAULT_REGION if region is None else region[1]
    # The default chain looks here first too, but reports every file that is not there on stderr.
    if environment.get("AWS_ACCESS_KEY_ID") and environment.get("AWS_SECRET_ACCESS_KEY"):
        spec["aws_credentials"] = {"type": "environment"}
    else:  # TensorStore by itself asks for the profile of the empty name, and knows no variable
        profile = environment.get("AWS_PROFILE") or DEFAULT_PROFILE
        spec["aws_credentials"] = {"type": "default", "profile": profile}
    return spec, {"s3_request_concurrency": {"limit": REQUESTS}, "s3_request_retries": RETRIES}


def _first(environment: Mapping[str, str], names: tuple[str, ...]) -> tuple[str, str] | None:
    """The first of some variables that is set, and its value."""
    return next(((name, environment[name]) for name in names if environment.get(name)), None)


def _checked(variable: str, endpoint: str) -> str:
    """An endpoint that names a server and nothing else. Raises InvalidInputError without repeating it."""
    try:
        parts = urlsplit(endpoint)
        secret = parts.username is not None or parts.password is not None or parts.query or parts.fragment
        good = parts.scheme in ("http", "https") and parts.hostname and not secret and parts.port != 0
    except ValueError:
        secret, good = False, False
    if good:
        return endpoint.rstrip("/")
    raise InvalidInputError(
        f"environment variable {variable}",
        got="a password or a query in it" if secret else "something else than the URL of a server",
        expected="http:// or https://, a host and perhaps a port",
        fix="put credentials into AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile",
    )
