"""Bytes as text, for golden files and for the example in docs/format.md.

Tokens between spaces: hexadecimal bytes, or `00*n` for n zero bytes. `#` starts a comment.
"""

from __future__ import annotations

import re


def parse(text: str) -> bytes:
    result = bytearray()
    for line in text.splitlines():
        for token in line.partition("#")[0].split():
            repeated = re.fullmatch(r"00\*(\d+)", token)
            result += bytes(int(repeated[1])) if repeated else bytes.fromhex(token)
    return bytes(result)


def dump(data: bytes) -> str:
    """Lines of 32 bytes; a run of zero words longer than a line is one token."""
    lines, at = [], 0
    while at < len(data):
        zeros = len(data[at:]) - len(data[at:].lstrip(b"\0"))
        zeros -= zeros % 4
        if zeros > 32:
            lines.append(f"00*{zeros}")
            at += zeros
        else:
            lines.append(data[at : at + 32].hex())
            at += 32
    return "\n".join(lines) + "\n"
