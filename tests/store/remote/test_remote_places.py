"""What names a place, and how TensorStore is told of it; no secret is repeated."""

from __future__ import annotations

from pathlib import Path

import pytest
import tensorstore as ts

import endor_jax as endor
from endor_jax.errors import InvalidInputError, UnsupportedError
from endor_jax.location import ObjectPath, local_path, locate
from endor_jax.store.remote.driver import spec_of
from endor_jax.store.remote.refusals import without_secrets


def test_texts_and_paths() -> None:
    assert locate("models/a") == Path("models/a")
    assert locate(Path("s3")) == Path("s3")
    place = locate("s3://bucket/models/a/")
    assert place == ObjectPath("s3", "bucket", "models/a")
    assert str(place) == "s3://bucket/models/a"
    assert str(place / "endor.json") == "s3://bucket/models/a/endor.json"
    assert locate(place) is place
    assert place.name == "a"
    whole = locate("GS://bucket")
    assert (whole / "endor.json", whole.name) == (ObjectPath("gs", "bucket", "endor.json"), "bucket")


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("s3://user:hunter2@bucket/a", InvalidInputError, "got a user or a password in it"),
        ("s3://bucket/a?X-Amz-Signature=hunter2", InvalidInputError, "got a query or a fragment in it"),
        ("s3://bucket/a#hunter2", InvalidInputError, "a query or a fragment"),
        ("s3:///hunter2", InvalidInputError, "no name of a bucket"),
        ("s3://bucket/../hunter2", InvalidInputError, "an empty segment"),
        ("s3://bucket/a//hunter2", InvalidInputError, "an empty segment"),
        ("https://user:hunter2@host/a", UnsupportedError, "begins with https://"),
        (Path("s3://bucket/a"), InvalidInputError, "pathlib"),
    ],
)
def test_what_names_no_place(text: str | Path, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as raised:
        endor.open(text)
    assert "hunter2" not in str(raised.value)


def test_what_can_only_be_local() -> None:
    assert local_path("a", "source") == Path("a")
    with pytest.raises(UnsupportedError, match=r"source s3://b/a: got a place in an object store"):
        local_path("s3://b/a", "source")


def test_the_drivers_take_what_they_are_told() -> None:
    place = ObjectPath("s3", "bucket", "a/b")
    spec, context = spec_of(place, {})
    chain = {"type": "default", "profile": "default"}
    assert spec == {"driver": "s3", "bucket": "bucket", "path": "a/b/", "aws_credentials": chain}
    spec, _ = spec_of(place, {"AWS_PROFILE": "work", "AWS_ACCESS_KEY_ID": "half"})
    assert spec["aws_credentials"] == {"type": "default", "profile": "work"}
    own = {
        "AWS_ENDPOINT_URL": "http://localhost:9000/",
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "y",
    }
    spec, context = spec_of(place, own)
    assert (spec["endpoint"], spec["aws_region"]) == ("http://localhost:9000", "us-east-1")
    assert spec["aws_credentials"] == {"type": "environment"}
    spec, _ = spec_of(place, own | {"AWS_ENDPOINT_URL_S3": "https://r2", "AWS_DEFAULT_REGION": "auto"})
    assert (spec["endpoint"], spec["aws_region"]) == ("https://r2", "auto")
    opened = ts.KvStore.open(spec, context=ts.Context(context)).result()
    assert opened.spec().to_json()["path"] == "a/b/"
    spec, context = spec_of(ObjectPath("gs", "bucket", ""), own)
    assert spec == {"driver": "gcs", "bucket": "bucket", "path": ""}
    assert ts.KvStore.open(spec, context=ts.Context(context)).result().url == "gs://bucket/"


@pytest.mark.parametrize(
    "endpoint",
    [
        "http://user:hunter2@localhost:9000",
        "https://host/?token=hunter2",
        "ftp://hunter2",
        "hunter2",
        "http://h:0",
    ],
)
def test_an_endpoint_that_is_none(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    with pytest.raises(InvalidInputError, match=r"environment variable AWS_ENDPOINT_URL: got") as raised:
        endor.open("s3://bucket/a")
    assert "hunter2" not in str(raised.value)


@pytest.mark.parametrize(
    "text",
    [
        "GET https://user:hunter2@host/x",
        "https://host/x?X-Amz-Signature=hunter2&a=b",
        "?X-Amz-Credential=hunter2",
        "?X-Amz-Security-Token=hunter2",
        "?AWSAccessKeyId=hunter2",
        "Authorization: Bearer hunter2",
        "the key AKIAHUNTER2XXXXXXXXX",
        "the key AROAHUNTER2XXXXXXXXX",
        "the key my-own-hunter2 is wrong",
        "the secret hunter2/K7MDENG+bPxRfiCYEXAMPLEKEYabcdef.",
        "the token " + "hunter2/" * 20 + "==",
    ],
)
def test_what_looks_like_a_secret_is_struck_out(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "my-own-hunter2")
    assert "hunter2" not in without_secrets(text).lower()
    assert "***" in without_secrets(text)


def test_what_is_no_secret_stays() -> None:
    for text in (
        "s3://bucket/a: 503 Slow Down",
        "NoSuchBucket: The specified bucket does not exist (HTTP status 404)",
        "s3://bucket/models/llama/parts/the_word_embedding_of_all/c/0",
    ):
        assert without_secrets(text) == text
