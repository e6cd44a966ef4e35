"""Values out of other people's files, made short enough for one line of an error message."""

from __future__ import annotations

from reprlib import Repr

_CHARACTERS = 120
_SHOWN = Repr()
_SHOWN.maxstring = _SHOWN.maxother = _SHOWN.maxlong = _CHARACTERS
_SHOWN.maxlevel = 3


def brief(value: object) -> str:
    """`repr(value)` on one line, the middle of long strings and the rest of long or deep lists left out."""
    return _SHOWN.repr(value)


def brief_text(text: object) -> str:
    """The message of somebody else's error, on one line, control codes spelt out, cut off if long."""
    line = " ".join(str(text)[: 4 * _CHARACTERS].split())
    line = "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in line)
    return line if len(line) <= _CHARACTERS else f"{line[:_CHARACTERS]}..."
