"""The same token ids from fastokens, an optional Rust library tens of times faster than `tokenizers`."""

from collections.abc import Sequence
from importlib import import_module, metadata
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import AddedToken

from sconce.tokenizer.bpe import Tokenizer

# No text of a corpus holds a NUL. As a token of its own between documents it lets a batch of them be one text: handing
# over short documents, each by itself, takes as long as encoding them.
_BORDER = "\0"


class FastUnavailableError(Exception):
    """fastokens is not installed, or does not take this tokenizer; the message says which."""


class FastEncoder:
    """Encodes as `Tokenizer` does, with special tokens read as text and EOS after each document."""

    def __init__(self, content: bytes, eos_id: int) -> None:
        """`content` is a tokenizer.json. Raises FastUnavailableError."""
        try:
            library: Any = import_module("fastokens")
            self.name = f"fastokens {metadata.version('fastokens')}"
        except ImportError:
            raise FastUnavailableError("fastokens is not installed (pip install 'sconce-lm[fast]')") from None
        try:
            self._tokenizer: Any = library.Tokenizer.from_json_str(content.decode())
            self._tokenizer.no_truncation()
            self._tokenizer.add_tokens([AddedToken(_BORDER, normalized=False, special=False)])
            self._border_id: int = self._tokenizer.token_to_id(_BORDER)
        except Exception as error:  # the library raises nothing narrower
            raise FastUnavailableError(f"{self.name} does not take this tokenizer ({error})") from error
        self._eos_id = eos_id

    def encode_flat(self, documents: Sequence[bytes]) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        """The ids of documents in UTF-8 without NUL, EOS after each, and each one's length with it, (documents,)."""
        text = b"".join((_BORDER.encode().join(documents), _BORDER.encode())).decode()
        raw, _ = self._tokenizer.encode_batch_flat([text], split_special_tokens=True)
        ids = np.frombuffer(raw, "<u4")
        is_end = ids == self._border_id
        lengths = np.diff(np.flatnonzero(is_end), prepend=-1)
        assert len(lengths) == len(documents), "a document holds a NUL"
        return np.where(is_end, np.uint32(self._eos_id), ids), lengths


def fast_encoder(tokenizer: Tokenizer) -> FastEncoder:
    """The faster program for `tokenizer`. Raises FastUnavailableError where there is none."""
    return FastEncoder(tokenizer.content, tokenizer.eos_id)
