"""Stop strings: text in pieces, given out as soon as it is certain to lie before any of them."""

from __future__ import annotations

from collections.abc import Sequence

from endor_jax.errors import OptionError


class StopStrings:
    """Cuts a text that comes in pieces before the earliest stop string: neither it nor the rest comes out.

    The earliest is the one that begins first, however the text is cut into pieces. So where a stop is
    complete and a longer one that begins before it may still become so ("bc" in "abc", with the stops "bc"
    and "abcd"), the next pieces decide. Of stops that begin at the same place it does not matter which one
    counts: the text is cut there. Characters are compared as they are, without Unicode normalisation.

    stopped: whether a stop was found; what is fed afterwards is dropped.
    Raises OptionError for an empty stop string, or a plain string in place of a sequence.
    """

    def __init__(self, stops: Sequence[str]):
        if isinstance(stops, str):
            raise OptionError(
                "stop strings",
                got=f"the string {stops!r}",
                expected="a sequence of strings",
                fix="put it into a list",
            )
        if "" in stops:
            raise OptionError(
                "stop strings",
                got="an empty string",
                expected="at least one character",
                fix="leave it out: every text would stop before it begins",
            )
        self._stops = tuple(stops)
        self._held = ""
        self.stopped = False

    def feed(self, piece: str) -> str:
        """What became certain with this piece: it lies before any stop, whatever comes next."""
        if self.stopped:
            return ""
        self._held += piece
        open_at, stop_at = self._first_open(), self._first_stop()
        self.stopped = stop_at is not None and stop_at <= open_at
        certain = self._held[: stop_at if self.stopped else open_at]
        self._held = "" if self.stopped else self._held[open_at:]
        return certain

    def finish(self) -> str:
        """The rest of the text, once the last piece was fed: what was held back in case a stop came."""
        stop_at = self._first_stop()
        self.stopped = self.stopped or stop_at is not None
        rest, self._held = self._held[:stop_at], ""
        return rest

    def _first_stop(self) -> int | None:
        """Where the earliest whole stop begins in what is held."""
        return min((at for stop in self._stops if (at := self._held.find(stop)) >= 0), default=None)

    def _first_open(self) -> int:
        """Where the earliest stop begins whose end may be in the next pieces; the end if there is none."""
        end = len(self._held)
        longest = max(map(len, self._stops), default=0)
        for begin in range(max(end - longest + 1, 0), end):
            tail = self._held[begin:]
            if any(len(tail) < len(stop) and stop.startswith(tail) for stop in self._stops):
                return begin
        return end
