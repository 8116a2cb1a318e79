"""Text out of tokens as they come."""

import codecs
from collections.abc import Sequence

from sconce.tokenizer.bpe import Tokenizer


class TextStream:
    """Tokens to text: whole characters only, and nothing that may be the start of a stop string."""

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
        self.stopped = False
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""

    def push(self, token: int) -> str:
        """The text that is certain after one more token; `stopped` when a stop string, left out, has ended it."""
        assert not self.stopped
        return self._release(self._utf8.decode(self._tokenizer.token_text(token)))

    def finish(self) -> str:
        """What is left at the end; half a character becomes U+FFFD."""
        if self.stopped:
            return ""
        text = self._release(self._utf8.decode(b"", final=True))
        held, self._held = self._held, ""
        return text if self.stopped else text + held

    def _release(self, text: str) -> str:
        self._held += text
        found = [index for stop in self._stop if (index := self._held.find(stop)) >= 0]
        if found:
            self.stopped = True
            return self._held[: min(found)]
        certain = len(self._held) - max((_overlap(self._held, stop) for stop in self._stop), default=0)
        text, self._held = self._held[:certain], self._held[certain:]
        return text


def _overlap(text: str, stop: str) -> int:
    """How many of the last characters of `text` are the first ones of `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((length for length in range(longest, 0, -1) if text.endswith(stop[:length])), 0)
