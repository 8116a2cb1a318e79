"""A byte-level BPE tokenizer as a GGUF file has it: tokens with their kinds, merges, and how text is cut first.

llama.cpp does not read the regular expressions that cut text into words; it has a list of them, by name. Only a
tokenizer that cuts as one of these does can be taken over.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

from sconce.errors import CheckpointError
from sconce.tokenizer.bpe import Tokenizer

Table = Mapping[str, object]

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5  # kinds of token
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# Published patterns, after which bytes become characters. Llama 3's looks a whole word up before it merges.
_PATTERNS = {
    _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + _REST: ("llama-bpe", True),
    _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + _REST: ("qwen2", False),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class GGUFTokenizer:
    """What a GGUF file says of a tokenizer; `notes` is what llama.cpp does differently."""

    tokens: list[str]
    kinds: list[int]
    merges: list[str]
    cut: str  # the name of how text is cut
    notes: tuple[str, ...]


def gguf_tokenizer(tokenizer: Tokenizer, vocab_size: int) -> GGUFTokenizer:
    """The tokenizer for a model of `vocab_size` rows; ids that it does not have become unused tokens.

    Raises CheckpointError when llama.cpp would cut text otherwise.
    """
    content = cast(Table, json.loads(tokenizer.content))
    model = cast(Table, content["model"])
    cut = _cut(tokenizer, content.get("pre_tokenizer"), bool(model.get("ignore_merges")))
    tokens = [f"[PAD{index}]" for index in range(vocab_size)]
    kinds = [UNUSED] * vocab_size
    for text, index in cast(Mapping[str, int], model["vocab"]).items():
        tokens[index], kinds[index] = text, NORMAL
    for token in cast(list[Table], content.get("added_tokens") or []):
        index = cast(int, token["id"])
        tokens[index], kinds[index] = cast(str, token["content"]), CONTROL if token.get("special") else USER_DEFINED
    merges = [
        item if isinstance(item, str) else " ".join(item) for item in cast(list[str | list[str]], model["merges"])
    ]
    return GGUFTokenizer(
        tokens=tokens, kinds=kinds, merges=merges, cut=cut, notes=_notes(tokenizer, content.get("normalizer"))
    )


def _cut(tokenizer: Tokenizer, pre_tokenizer: object, ignore_merges: bool) -> str:
    steps = _steps(pre_tokenizer, "pretokenizers")
    kinds = [step.get("type") for step in steps]
    if kinds and kinds[-1] == "ByteLevel" and steps[-1].get("add_prefix_space") is False:
        by_words = steps[-1].get("use_regex") is not False
        first = steps[0]
        if kinds == ["ByteLevel"] and by_words and not ignore_merges:
            return "gpt-2"
        if kinds == ["Digits", "ByteLevel"] and first.get("individual_digits") and by_words and not ignore_merges:
            return "smollm"
        if kinds == ["Split", "ByteLevel"] and not by_words and first.get("behavior") == "Isolated":
            pattern = cast(Mapping[str, str], first.get("pattern") or {}).get("Regex", "")
            name, looks_up = _PATTERNS.get(pattern, ("", False))
            if name and looks_up == ignore_merges and not first.get("invert"):
                return name
    known = "gpt-2, smollm, " + ", ".join(name for name, _ in _PATTERNS.values())
    raise CheckpointError(
        f"{tokenizer.path}: llama.cpp has no name for how this tokenizer cuts text into words; those that Sconce can "
        f"tell are {known}"
    )


def _notes(tokenizer: Tokenizer, normalizer: object) -> tuple[str, ...]:
    kinds = [step.get("type") for step in _steps(normalizer, "normalizers")]
    if kinds == ["NFC"]:
        return (
            "llama.cpp does not normalise text (NFC): what is typed in decomposed characters reads differently there",
        )
    if kinds:
        raise CheckpointError(f"{tokenizer.path}: llama.cpp has no normaliser, and this tokenizer has {kinds[0]}")
    return ()


def _steps(value: object, key: str) -> list[Table]:
    """A step of the tokenizer's pipeline, or what a sequence of them holds."""
    if not isinstance(value, dict):
        return []
    step = cast(Table, value)
    return cast(list[Table], step[key]) if step.get("type") == "Sequence" else [step]
