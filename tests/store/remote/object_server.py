"""An object store on loopback: moto's server in a process of its own; a proxy in front that does damage."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

SECRET = "planted/Secret+Of40CharactersThatMustNotShow"
KEY_ID = "AKIAPLANTEDKEYID0000"
BUCKET = "models"
CHUNK = 16384
"""Of the parts in tests: some have several, as large parts have."""

_SERVER = """
import sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()  # until whoever started it is gone
"""


@contextmanager
def moto_server() -> Iterator[int]:
    """Starts a server with one bucket; gives its port."""
    process = subprocess.Popen(
        [sys.executable, "-c", _SERVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        make_bucket(port, BUCKET)
        yield port
    finally:
        process.kill()
        process.communicate()


def make_bucket(port: int, name: str) -> None:
    request = urllib.request.Request(f"http://127.0.0.1:{port}/{name}", method="PUT")
    urllib.request.urlopen(request, timeout=30).close()


def environment(port: int) -> dict[str, str]:
    """What a process needs to reach the store at this port, with secrets that must show nowhere."""
    return {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": KEY_ID,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "TENSORSTORE_S3_USE_CONDITIONAL_WRITE": "1",
    }


def use(patch: pytest.MonkeyPatch, port: int) -> None:
    """Lets this process reach the store at this port."""
    for name in list(os.environ):
        if name.startswith("AWS_"):
            patch.delenv(name)
    for name, value in environment(port).items():
        patch.setenv(name, value)


def upload(directory: Path, url: str) -> None:
    """Copies the files of a local checkpoint, as `aws s3 cp --recursive` does."""
    from endor_jax.location import ObjectPath, locate
    from endor_jax.store.remote.objects import Objects

    place = locate(url)
    assert isinstance(place, ObjectPath)
    objects = Objects(place)
    for file in sorted(directory.rglob("*")):
        if file.is_file():
            objects.put(file.relative_to(directory).as_posix(), file.read_bytes())


@dataclass(frozen=True)
class Request:
    """One request, as it came. number: how many like it came before (same method, path and range). key_id:
    of the key that signed it."""

    method: str
    path: str
    range: str
    number: int
    key_id: str

    def is_data(self) -> bool:
        """Whether it reads the data file of a part."""
        return self.method == "GET" and self.path.endswith("/c/0")


Answer = Callable[[Request, bytes], bytes | None]
"""(request, the store's answer) -> what the client gets; None: the connection is cut."""


@dataclass
class Proxy:
    """Stands in front of a server; `answer` decides what becomes of each answer. requests: all that came."""

    upstream: int
    answer: Answer = field(default=lambda request, answer: answer)
    requests: list[Request] = field(default_factory=list)
    most_at_once: int = 0

    def __post_init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._lock, self._at_once = threading.Lock(), 0
        self._open: set[socket.socket] = set()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                self._open.add(client)
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with (
            suppress(OSError),
            client,
            client.makefile("rb") as from_client,
        ):
            while head := _head(from_client):
                if b"100-continue" in head:
                    client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
                body = from_client.read(_length(head))
                method, path = head.decode("latin-1").split(" ")[:2]
                with self._lock:
                    self._at_once += 1
                    self.most_at_once = max(self.most_at_once, self._at_once)
                    same = (method, path, _field(head, "range"))
                    before = sum((r.method, r.path, r.range) == same for r in self.requests)
                    request = Request(*same, before, _key_id(head))
                    self.requests.append(request)
                try:
                    found = self._ask(re.sub(rb"(?i)expect: 100-continue\r\n", b"", head) + body, method)
                    sent = self.answer(request, found)
                finally:
                    with self._lock:
                        self._at_once -= 1
                if sent is not None:
                    client.sendall(sent)
                if sent is None or len(sent) < len(found):  # cut off
                    client.shutdown(socket.SHUT_RDWR)
                    return

    def _ask(self, message: bytes, method: str) -> bytes:
        """The server's answer, on a connection of its own: the server may close it, and ours goes on."""
        with (
            socket.create_connection(("127.0.0.1", self.upstream)) as server,
            server.makefile("rb") as from_server,
        ):
            server.sendall(message)
            found = re.sub(rb"(?i)connection: close\r\n", b"", _head(from_server))
            return found + (b"" if method == "HEAD" else from_server.read(_length(found)))

    def close(self) -> None:
        self._listener.close()
        with self._lock:
            for client in self._open:
                with suppress(OSError):
                    client.shutdown(socket.SHUT_RDWR)


def _head(file: object) -> bytes:
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        line = file.readline()  # type: ignore[attr-defined]
        if not line:
            return b""
        head += line
    return head


def _length(head: bytes) -> int:
    return int(_field(head, "content-length") or 0)


def _field(head: bytes, name: str) -> str:
    found = re.search(rf"\r\n{name}: *([^\r]*)", head.decode("latin-1"), re.IGNORECASE)
    return found[1] if found else ""


def _key_id(head: bytes) -> str:
    found = re.search(r"Credential=([^/]*)/", _field(head, "authorization"))
    return found[1] if found else ""


def failure(status: int, code: str = "InternalError", message: str = "We are sorry") -> bytes:
    """An answer of S3 that refuses; its body repeats secrets, as that of a wrong signature does."""
    body = (
        f"<Error><Code>{code}</Code><Message>{message}</Message><AWSAccessKeyId>{KEY_ID}</AWSAccessKeyId>"
        f"<StringToSign>{SECRET}</StringToSign></Error>"
    ).encode()
    head = (
        f"HTTP/1.1 {status} Refused\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def slow(seconds: float) -> Answer:
    """Every answer comes so much later."""

    def answer(request: Request, found: bytes) -> bytes:
        time.sleep(seconds)
        return found

    return answer
