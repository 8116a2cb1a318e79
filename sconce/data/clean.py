"""Cleaning documents: white space, control characters, what is too short, what was there before. Every drop counts."""

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from sconce.data.corpus import Corpus
from sconce.data.text_shards import Existing, TextOptions, make_text, text_request
from sconce.errors import DataError

Duplicates = Literal["keep", "exact", "near"]

_LINE_ENDS = re.compile(r"\r\n?|[\u2028\u2029]")
# C0 and C1 but tab and LF, zero-width no-break space, and what steers the direction of writing.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ufeff\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_LINE_REST = re.compile(r"[^\S\n]+$", re.MULTILINE)
_SPACES = re.compile(r"[^\S\n]+")
_BLANK_LINES = re.compile(r"\n{3,}")
_WORD = re.compile(r"\w+")
_SHINGLE_WORDS = 5
_PERMUTATIONS = 128


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
    text = _CONTROL.sub("", _LINE_ENDS.sub("\n", text))
    text = _LINE_REST.sub("", _SPACES.sub(" ", text) if collapse_spaces else text)
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

    def clean(self, documents: Iterable[bytes]) -> Iterator[bytes]:
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
        digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
        if digest in self._seen:
            return "duplicate"
        self._seen.add(digest)
        return "near_duplicate" if self._near is not None and self._near.seen(text, digest) else None


class _NearDuplicates:
    def __init__(self, options: CleanOptions) -> None:
        try:
            self._library: Any = import_module("datasketch")
        except ImportError:
            raise DataError("near duplicates need datasketch: pip install 'sconce-lm[dedup]'") from None
        self._options = options
        self._sketches: dict[bytes, Any] = {}
        self._index: Any = self._library.MinHashLSH(threshold=options.similarity, num_perm=_PERMUTATIONS)

    def seen(self, text: str, name: bytes) -> bool:
        """Whether a text like this one was kept before; if not, it is from now on."""
        words = _WORD.findall(text.lower())
        grams = {" ".join(words[at : at + _SHINGLE_WORDS]) for at in range(max(1, len(words) - _SHINGLE_WORDS + 1))}
        sketch: Any = self._library.MinHash(num_perm=_PERMUTATIONS, seed=self._options.seed)
        sketch.update_batch([gram.encode() for gram in grams])
        # The index proposes; the estimate decides.
        candidates = self._index.query(sketch)
        if any(self._sketches[other].jaccard(sketch) >= self._options.similarity for other in candidates):
            return True
        self._sketches[name] = sketch
        self._index.insert(name, sketch)
        return False


def clean_corpus(
    corpus: Corpus, folder: Path, cleaning: CleanOptions, options: TextOptions, existing: Existing
) -> tuple[dict[str, Any], bool]:
    """Write the documents of a corpus, cleaned, as text shards; their manifest, and whether they were there already.

    The manifest's "counts" say what became of the documents. Raises DataError as `shard_text` does.
    """
    cleaner, sources = Cleaner(cleaning), corpus.sources()

    def documents() -> Iterator[bytes]:
        for source in sources:
            yield from cleaner.clean(source.documents(corpus.rule))

    request = text_request("clean", corpus, options, {"cleaning": asdict(cleaning)})
    return make_text(request, sources, documents, folder, options, existing, lambda: {"counts": dict(cleaner.counts)})
