"""A line: one TCP connection to another process of the run, which carries JSON objects."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterable, Mapping
from typing import Any

MOST_BYTES = 1 << 20
"""Of one message. Ours are a few hundred bytes; whoever sends more is none of us."""

SEND_SECONDS = 5.0
"""How long a message may take to leave: it takes none until the other side has left thousands unread."""

LINGER_SECONDS = 1.0
"""How long `close_all` waits for the other sides to have read everything."""


class Line:
    """Sends and receives messages, one per line of text; several threads may send, one receives."""

    def __init__(self, connection: socket.socket):
        self._connection = connection
        self._unread = b""
        self._sending = threading.Lock()
        connection.settimeout(SEND_SECONDS)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def fileno(self) -> int:
        """For `select`."""
        return self._connection.fileno()

    def send(self, message: Mapping[str, Any]) -> None:
        """Raises OSError if the connection has ended."""
        data = json.dumps(message).encode() + b"\n"
        with self._sending:
            self._connection.sendall(data)

    def receive(self) -> list[dict[str, Any]]:
        """What has come, waiting for the first bytes. Raises OSError at the end of the connection, ValueError
        for anything but our messages."""
        data = self._connection.recv(1 << 16)
        if not data:
            raise ConnectionResetError("the connection was closed")
        *lines, self._unread = (self._unread + data).split(b"\n")
        if len(self._unread) > MOST_BYTES:
            raise ValueError(f"a message of more than {MOST_BYTES:,} bytes")
        messages = [json.loads(line) for line in lines]
        for message in messages:
            if not isinstance(message, dict) or not isinstance(message.get("kind"), str):
                raise ValueError(f"{str(message)[:100]!r}, which is none of our messages")
        return messages

    def close(self, *, seconds: float = 0.0) -> None:
        """Ends the connection once the other side has ended it too, or that many seconds have passed.

        A socket that is closed with unread bytes resets the connection, and the last message may be lost:
        it is the one that says why.
        """
        deadline = time.monotonic() + seconds
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_WR)
            while (left := deadline - time.monotonic()) > 0:
                self._connection.settimeout(left)
                if not self._connection.recv(1 << 16):
                    break
        self._connection.close()


def close_all(lines: Iterable[Line]) -> None:
    """Ends them all, once what was sent is read, or a second has passed."""
    deadline = time.monotonic() + LINGER_SECONDS
    for line in lines:
        line.close(seconds=max(0.0, deadline - time.monotonic()))
