"""A byte-level BPE tokenizer in Hugging Face's tokenizer.json: lossless for any text, with no unknown token."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import cast

import numpy as np
import tokenizers
from numpy.typing import NDArray
from tokenizers import decoders, models, pre_tokenizers, trainers

from sconce.errors import DataError
from sconce.files import write_atomic, write_json
from sconce.tokenizer.extras import CONFIG, TokenizerExtras, read_extras

SPECIAL_TOKENS = ("<|bos|>", "<|eos|>", "<|pad|>")  # ids 0, 1, 2
MIN_VOCAB_SIZE = 256 + len(SPECIAL_TOKENS)
FORMAT = "sconce-tokenizer-1"

# What other people's tokenizers call these, in the order in which they are looked for.
_BOS = ("<|bos|>", "<|begin_of_text|>", "<|startoftext|>", "<bos>", "<s>")
_EOS = ("<|eos|>", "<|endoftext|>", "<|end_of_text|>", "<eos>", "</s>")
_PAD = ("<|pad|>", "<pad>")


class VocabularyError(DataError):
    """The text supports fewer tokens than were asked for; `supported` is how many."""

    def __init__(self, message: str, supported: int) -> None:
        super().__init__(message)
        self.supported = supported


class Tokenizer:
    """Text to token ids and back. Encoding never yields a special token, whatever the text says."""

    def __init__(self, path: Path, content: bytes, extras: TokenizerExtras | None = None) -> None:
        """`content` is the tokenizer.json at `path`. Raises DataError unless it is byte-level BPE with an EOS.

        Without `extras` that say it, special tokens are told by their usual names.
        """
        self.path = path
        self.content = content
        self.extras = extras or TokenizerExtras()
        self.sha256 = hashlib.sha256(content).hexdigest()
        self.num_merges = _check_kind(path, content)
        self._bpe = _parse(path, content)
        self._vocab = self._bpe.get_vocab(with_added_tokens=True)
        self.vocab_size = max(self._vocab.values()) + 1  # of the embedding: ids may have holes
        eos = self._special("eos_token", _EOS)
        if eos is None:
            said = self.extras.special.get("eos_token")
            wanted = f"one of {', '.join(_EOS)}" if said is None else f"{said}, as {CONFIG} beside it says"
            raise DataError(f"{path}: no end-of-text token; expected {wanted}")
        self.eos_id = eos
        self.bos_id = self._begins()
        self.pad_id = self._special("pad_token", _PAD)

    @property
    def chat_template(self) -> str | None:
        """How a conversation is put to the model, in Jinja; None where nobody said."""
        return self.extras.chat_template

    @cached_property
    def prefix(self) -> list[int]:
        """What the tokenizer's own post-processor puts before a text that it is given whole: BOS, or nothing."""
        return self._first_id if self._first_id == [self.bos_id] else []

    @property
    def special_texts(self) -> dict[str, str | None]:
        """bos_token, eos_token and pad_token as the vocabulary spells them; None for one that there is not."""
        ids = {"bos_token": self.bos_id, "eos_token": self.eos_id, "pad_token": self.pad_id}
        return {name: None if token_id is None else self._bpe.id_to_token(token_id) for name, token_id in ids.items()}

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, with nothing added."""
        return self._bpe.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of each text, on all cores."""
        return [encoding.ids for encoding in self._bpe.encode_batch_fast(list(texts), add_special_tokens=False)]

    def encode_markup(self, text: str, whole: bool = False) -> list[int]:
        """Token ids of `text` in which special tokens are written out, as a chat template does.

        Nothing is added, but to a `whole` text what the tokenizer's post-processor puts around one.
        """
        return self._marked.encode(text, add_special_tokens=whole).ids

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """Text of `ids`; bytes that are not UTF-8 (half a character) become U+FFFD."""
        return self._bpe.decode(ids, skip_special_tokens=skip_special)

    def token_text(self, token_id: int) -> bytes:
        """The UTF-8 bytes that an id stands for, maybe part of a character; none for special and unused ids."""
        return self._texts.get(token_id, b"")

    @cached_property
    def _marked(self) -> tokenizers.Tokenizer:
        marked = _parse(self.path, self.content)
        marked.encode_special_tokens = False
        return marked

    @cached_property
    def _texts(self) -> dict[int, bytes]:
        added = self._bpe.get_added_tokens_decoder()
        texts = {token_id: _spelled(token) for token, token_id in self._vocab.items() if token_id not in added}
        return texts | {token_id: token.content.encode() for token_id, token in added.items() if not token.special}

    @cached_property
    def token_bytes(self) -> NDArray[np.int32]:
        """UTF-8 bytes that each id stands for, (vocab_size,); 0 for special tokens and unused ids."""
        lengths = np.zeros(self.vocab_size, np.int32)
        for token, token_id in self._vocab.items():
            lengths[token_id] = len(token)  # byte-level BPE writes each byte as one character
        for token_id, added in self._bpe.get_added_tokens_decoder().items():
            lengths[token_id] = 0 if added.special else len(added.content.encode())
        return lengths

    def _begins(self) -> int | None:
        """What texts begin with: as the extras say; else the usual BOS, if the post-processor puts it there.

        Else it is EOS, as in GPT-2's tokenizer: where documents lie one after another, that is what a text follows. A
        BOS that is only in the vocabulary stands nowhere in training, and is the last thing to begin with.
        """
        if "bos_token" in self.extras.special or self._first_id == [self._first(_BOS)]:
            return self._special("bos_token", _BOS)
        return self.eos_id

    @cached_property
    def _first_id(self) -> list[int]:
        """The first id of a text that is given whole, which is a special one only if the post-processor put it."""
        return self._bpe.encode("a", add_special_tokens=True).ids[:1]

    def _special(self, role: str, usual: Sequence[str]) -> int | None:
        """The token with a role: as the extras say, which may be that there is none, else by its usual names."""
        said = self.extras.special.get(role)
        if said is not None:
            return self._vocab.get(said)
        return None if role in self.extras.special and role != "eos_token" else self._first(usual)

    def _first(self, names: Sequence[str]) -> int | None:
        return next((self._vocab[name] for name in names if name in self._vocab), None)


def train_tokenizer(
    texts: Iterable[str], vocab_size: int, folder: Path, sources: Sequence[dict[str, object]]
) -> Tokenizer:
    """Train on `texts` and write tokenizer.json, then manifest.json, into `folder`.

    The same texts give the same bytes. `sources` goes into the manifest as it is.
    Raises DataError, leaving nothing behind, when `vocab_size` is out of what bytes and text allow.
    """
    if vocab_size < MIN_VOCAB_SIZE:
        raise DataError(
            f"a vocabulary of {vocab_size} tokens is too small: the least is {MIN_VOCAB_SIZE} "
            f"(256 bytes and {len(SPECIAL_TOKENS)} special tokens)"
        )
    bpe = tokenizers.Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore[reportAttributeAccessIssue]
    bpe.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    seen = _Seen(texts)
    bpe.train_from_iterator(iter(seen), trainer=trainer)
    if (supported := bpe.get_vocab_size()) < vocab_size:
        raise VocabularyError(
            f"{seen.utf8_bytes} bytes of text support a vocabulary of {supported} tokens, not {vocab_size}: "
            f"set the vocabulary size to {supported} or less, or give more text",
            supported,
        )
    _write(folder, bpe.to_str(pretty=True).encode(), vocab_size, seen, sources)
    return load_tokenizer(folder / "tokenizer.json")


def _write(folder: Path, content: bytes, vocab_size: int, seen: "_Seen", sources: Sequence[dict[str, object]]) -> None:
    """tokenizer.json, then the manifest that vouches for it."""
    folder.mkdir(parents=True, exist_ok=True)
    # An interrupted write must not leave the new tokenizer beside the old manifest.
    (folder / "manifest.json").unlink(missing_ok=True)
    write_atomic(folder / "tokenizer.json", content)
    write_json(
        folder / "manifest.json",
        {
            "format": FORMAT,
            "vocab_size": vocab_size,
            "special_tokens": {name: index for index, name in enumerate(SPECIAL_TOKENS)},
            "sha256": hashlib.sha256(content).hexdigest(),
            "trained_on": {
                "documents": seen.documents,
                "utf8_bytes": seen.utf8_bytes,
                "sha256": seen.digest.hexdigest(),  # of each document followed by a NUL
            },
            "tokenizers_version": tokenizers.__version__,
            "sources": list(sources),
        },
    )


def load_tokenizer(path: Path) -> Tokenizer:
    """Read a tokenizer.json, ours or another's, and what stands beside it (see `extras`).

    Raises DataError when it is missing, damaged or unsuitable.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path}: no such tokenizer file") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    tokenizer = Tokenizer(path, content, read_extras(path.parent))
    expected = _manifest_sha256(path.with_name("manifest.json"))
    if expected not in (None, tokenizer.sha256):
        raise DataError(f"{path}: was changed after training: its sha256 is not the one in manifest.json beside it")
    return tokenizer


def describe(tokenizer: Tokenizer, text: str | None = None) -> dict[str, object]:
    """Facts for `inspect`; with `text`, also how many UTF-8 bytes a token of it covers on average."""
    longest = np.argsort(-tokenizer.token_bytes, kind="stable")[:10]
    facts: dict[str, object] = {
        "vocab_size": tokenizer.vocab_size,
        "merges": tokenizer.num_merges,
        "bos_id": tokenizer.bos_id,
        "eos_id": tokenizer.eos_id,
        "pad_id": tokenizer.pad_id,
        "sha256": tokenizer.sha256,
        "longest_tokens": [tokenizer.decode([int(index)]) for index in longest],
    }
    if text is not None:
        facts["bytes_per_token"] = len(text.encode()) / max(1, len(tokenizer.encode(text)))
    return facts


class _Seen:
    """Passes texts on, and keeps count of them."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._texts = texts
        self.documents = 0
        self.utf8_bytes = 0
        self.digest = hashlib.sha256()

    def __iter__(self) -> Iterator[str]:
        for text in self._texts:
            raw = text.encode()
            self.documents += 1
            self.utf8_bytes += len(raw)
            self.digest.update(raw + b"\0")
            yield text


def _spelled(token: str) -> bytes:
    """The bytes of a token in which each character stands for one (GPT-2's byte-level alphabet)."""
    return bytes(_BYTES[character] for character in token)


def _byte_alphabet() -> dict[str, int]:
    """Printable Latin-1 characters are their own byte; the other bytes are the characters from U+0100 on, in order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + index): byte for index, byte in enumerate(others)}


_BYTES = _byte_alphabet()


def _parse(path: Path, content: bytes) -> tokenizers.Tokenizer:
    try:
        bpe = tokenizers.Tokenizer.from_str(content.decode())
    except Exception as error:  # the library raises nothing narrower
        raise DataError(f"{path}: not a usable tokenizer.json: {error}") from error
    bpe.encode_special_tokens = True  # "<|eos|>" in a text is text
    bpe.no_padding()
    bpe.no_truncation()
    return bpe


def _check_kind(path: Path, content: bytes) -> int:
    """Number of merges; DataError unless this is JSON of a BPE model with a byte-level decoder."""
    try:
        parsed = json.loads(content)
    except ValueError as error:
        raise DataError(f"{path}: damaged, not JSON: {error}") from error
    model, decoder = _part(parsed, "model"), _part(parsed, "decoder")
    if model.get("type") != "BPE" or decoder.get("type") != "ByteLevel":
        raise DataError(
            f"{path}: expected a BPE model with a ByteLevel decoder, "
            f"found {model.get('type')} with {decoder.get('type')}"
        )
    return len(cast(list[object], model.get("merges", [])))


def _part(parsed: object, key: str) -> dict[str, object]:
    value = cast(dict[str, object], parsed).get(key) if isinstance(parsed, dict) else None
    return cast(dict[str, object], value) if isinstance(value, dict) else {}


def _manifest_sha256(path: Path) -> str | None:
    """What our manifest says tokenizer.json hashes to; None when there is none, or it is another program's."""
    try:
        parsed = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    ours = isinstance(parsed, dict) and cast(dict[str, object], parsed).get("format") == FORMAT
    return cast(dict[str, str], parsed)["sha256"] if ours else None
