"""An answer's text as it grows: tokens to characters, and the caller's stop strings."""

from collections.abc import Callable, Sequence

Decode = Callable[[Sequence[int]], str]


class GrowingText:
    """Turns tokens into text piece by piece.

    A token may end in the middle of a character, or of a stop string: such a tail is held back until it is decided.

    Args:
        decode: tokens to text, special tokens left out.
        stop: strings at which the answer ends; they are not part of it.
    """

    def __init__(self, decode: Decode, stop: Sequence[str] = ()) -> None:
        self._decode = decode
        self._stop = stop
        self._ids: list[int] = []
        self._begun, self._read = 0, 0  # tokens from `begun` are context for those from `read`, which are undecided
        self._held = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """The text that this token settles. `stopped` is True once a stop string has come."""
        self._ids.append(token)
        known = self._decode(self._ids[self._begun : self._read])
        text = self._decode(self._ids[self._begun :])
        if not text.endswith("\ufffd"):
            self._held += text[len(known) :]
            self._begun, self._read = self._read, len(self._ids)
        return self._settle()

    def end(self) -> str:
        """What was held back, when no more tokens come."""
        if self.stopped:
            return ""
        known, text = self._decode(self._ids[self._begun : self._read]), self._decode(self._ids[self._begun :])
        held, self._held = self._held + text[len(known) :], ""
        return held

    def _settle(self) -> str:
        found = [at for stop in self._stop if (at := self._held.find(stop)) >= 0]
        if found:
            self.stopped = True
            settled, self._held = self._held[: min(found)], ""
            return settled
        undecided = max((_overlap(self._held, stop) for stop in self._stop), default=0)
        split = len(self._held) - undecided
        settled, self._held = self._held[:split], self._held[split:]
        return settled


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
