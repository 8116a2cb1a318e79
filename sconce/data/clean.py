"""Cleaning documents: white space, control characters, what is too short, what was there before. Every drop counts."""

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np

from sconce.data.corpus import Corpus
from sconce.data.progress import Progress, Say
from sconce.data.text_shards import Existing, TextJob, make_text, text_request
from sconce.data.text_writer import TextOptions
from sconce.errors import DataError

Duplicates = Literal["keep", "exact", "near"]

_LINE_ENDS = ("\r\n", "\r", "\u2028", "\u2029")
# C0 and C1 but tab and LF, zero-width no-break space, and what steers the direction of writing.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ufeff\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_SPACES = re.compile(r"[^\S\n]+")
_BLANK_LINES = re.compile(r"\n{3,}")
_WORD = re.compile(r"\w+")
_SHINGLE_WORDS = 5
_PERMUTATIONS = 128
_HASHES = np.dtype("<u4")  # datasketch keeps hashes of 32 bits
_SKETCH_BYTES = _PERMUTATIONS * _HASHES.itemsize
_DIGEST_BYTES = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class CleanOptions:
    """What to do to each document, and which to drop. Two are near duplicates at `similarity` of their word 5-grams.

    Near duplicates are found by MinHash with `seed`: the estimate errs by some hundredths.
    """

    min_chars: int = 1
    collapse_spaces: bool = False
    duplicates: Duplicates = "exact"
    similarity: float = 0.8
    seed: int = 1


def clean_text(text: str, *, collapse_spaces: bool = False) -> str:
    """Line ends as LF, no control characters, no white space at line ends, around the text, or of many blank lines.

    With `collapse_spaces` also one space for each run of white space inside a line, indents included.
    """
    for line_end in _LINE_ENDS:
        text = text.replace(line_end, "\n")
    text = _CONTROL.sub("", text)
    text = _SPACES.sub(" ", text) if collapse_spaces else text
    text = "\n".join([line.rstrip() for line in text.split("\n")])  # many times as fast as a pattern
    return _BLANK_LINES.sub("\n\n", text).strip("\n").rstrip()


class Cleaner:
    """Cleans documents in order; `counts` says what became of them. Of duplicates the first is kept.

    Hashes of all documents that were kept are held in memory: some 100 bytes each, for near duplicates some 3 kB.
    """

    def __init__(self, options: CleanOptions) -> None:
        """Raises DataError when near duplicates are asked for and datasketch is not installed."""
        self.counts: Counter[str] = Counter(read=0, kept=0, changed=0, too_short=0, duplicate=0, near_duplicate=0)
        self._options = options
        self._seen: set[bytes] = set()
        self._near = _NearDuplicates(options) if options.duplicates == "near" else None
        self._learned: list[bytes] = []

    def __call__(self, documents: Iterable[bytes]) -> Iterator[bytes]:
        """The documents that are kept, cleaned, in UTF-8."""
        for document in documents:
            self.counts["read"] += 1
            text = document.decode()
            cleaned = clean_text(text, collapse_spaces=self._options.collapse_spaces)
            if (reason := self._reason(cleaned)) is not None:
                self.counts[reason] += 1
                continue
            self.counts["changed"] += cleaned != text
            self.counts["kept"] += 1
            yield cleaned.encode()

    def _reason(self, text: str) -> str | None:
        """Why a document is dropped."""
        if len(text) < max(1, self._options.min_chars):
            return "too_short"
        if self._options.duplicates == "keep":
            return None
        digest = hashlib.blake2b(text.encode(), digest_size=_DIGEST_BYTES).digest()
        if digest in self._seen:
            return "duplicate"
        sketch = b""
        if self._near is not None and (sketch := self._near.learn(text, digest)) is None:
            return "near_duplicate"
        self._seen.add(digest)
        self._learned.append(digest + sketch)
        return None

    def learned(self) -> bytes:
        """What identifies each document that was kept since the last call."""
        raw = b"".join(self._learned)
        self._learned.clear()
        return raw

    def restore(self, counts: Mapping[str, int], learned: BinaryIO) -> None:
        """Go on where another one stopped, which had these counts, and had learned this."""
        self.counts.update(counts)
        size = _DIGEST_BYTES + (_SKETCH_BYTES if self._near is not None else 0)
        while record := learned.read(size):
            digest = record[:_DIGEST_BYTES]
            self._seen.add(digest)
            if self._near is not None:
                self._near.add(digest, record[_DIGEST_BYTES:])


class _NearDuplicates:
    def __init__(self, options: CleanOptions) -> None:
        try:
            library: Any = import_module("datasketch")
        except ImportError:
            raise DataError("near duplicates need datasketch: pip install 'sconce-lm[dedup]'") from None
        self._similarity = options.similarity
        self._empty: Any = library.MinHash(num_perm=_PERMUTATIONS, seed=options.seed)
        self._sketches: dict[bytes, Any] = {}
        self._index: Any = library.MinHashLSH(threshold=options.similarity, num_perm=_PERMUTATIONS)

    def learn(self, text: str, name: bytes) -> bytes | None:
        """The sketch of a text, which is remembered; None for one like a text that was learned before."""
        words = _WORD.findall(text.lower())
        grams = {" ".join(words[at : at + _SHINGLE_WORDS]) for at in range(max(1, len(words) - _SHINGLE_WORDS + 1))}
        sketch = self._empty.copy()
        sketch.update_batch([gram.encode() for gram in grams])
        # The index proposes; the estimate decides.
        candidates = self._index.query(sketch)
        if any(self._sketches[other].jaccard(sketch) >= self._similarity for other in candidates):
            return None
        self._remember(name, sketch)
        return sketch.hashvalues.astype(_HASHES).tobytes()

    def add(self, name: bytes, raw: bytes) -> None:
        """Remember what `learn` returned."""
        sketch = self._empty.copy()
        sketch.hashvalues = np.frombuffer(raw, _HASHES).astype(sketch.hashvalues.dtype)
        self._remember(name, sketch)

    def _remember(self, name: bytes, sketch: Any) -> None:  # noqa: ANN401 - datasketch has no types
        self._sketches[name] = sketch
        self._index.insert(name, sketch)


def clean_corpus(
    corpus: Corpus,
    folder: Path,
    cleaning: CleanOptions,
    options: TextOptions,
    existing: Existing,
    *,
    progress: Progress | None = None,
    say: Say | None = None,
) -> tuple[dict[str, Any], bool]:
    """Write the documents of a corpus, cleaned, as text shards; their manifest, and whether they were there already.

    The manifest's "counts" say what became of the documents. Killed, it goes on, and raises, as `shard_text` does.
    """
    request = text_request("clean", corpus, options, {"cleaning": asdict(cleaning)})
    return make_text(TextJob(corpus, options, request, lambda: Cleaner(cleaning), progress, say), folder, existing)
