"""Answers in the OpenAI API's terms."""

import codecs
import time
import uuid
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from sconce.generation.model import Piece, Token

Json = dict[str, object]


@dataclass(slots=True)
class Usage:
    """Tokens of all choices of an answer."""

    prompt_tokens: int
    completion_tokens: int = 0

    def as_json(self) -> Json:
        """As the API has it."""
        total = self.prompt_tokens + self.completion_tokens
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": total,
        }


@dataclass(slots=True)
class _Place:
    """Characters of a choice so far; a token that begins within one has the offset of that one."""

    offset: int = 0
    decoder: codecs.IncrementalDecoder = field(default_factory=lambda: codecs.getincrementaldecoder("utf-8")("replace"))

    def pass_by(self, utf8: bytes) -> int:
        """Where a token of these bytes begins."""
        begin = self.offset
        self.offset += len(self.decoder.decode(utf8))
        return begin


class Answer:
    """What the parts of one answer have in common, for /v1/completions."""

    kind, chunk_kind, prefix = "text_completion", "text_completion", "cmpl"

    def __init__(self, model: str, usage: Usage, with_logprobs: bool) -> None:
        self.usage = usage
        self.with_logprobs = with_logprobs
        self._places: defaultdict[int, _Place] = defaultdict(_Place)
        self._base: Json = {
            "id": f"{self.prefix}-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": model,
        }

    def chunk(self, piece: Piece) -> Json:
        """One event of a stream."""
        return {**self._base, "object": self.chunk_kind, "choices": [self._choice([piece], piece.text, True)]}

    def usage_chunk(self) -> Json:
        """The last event of a stream that was asked for a count."""
        return {**self._base, "object": self.chunk_kind, "choices": [], "usage": self.usage.as_json()}

    def opening(self, choices: int) -> list[Json]:
        """Events before the first piece."""
        return []

    def whole(self, choices: Mapping[int, Sequence[Piece]]) -> Json:
        """The answer in one."""
        listed = [
            self._choice(pieces, "".join(piece.text for piece in pieces), False)
            for _, pieces in sorted(choices.items())
        ]
        return {**self._base, "object": self.kind, "choices": listed, "usage": self.usage.as_json()}

    def _choice(self, pieces: Sequence[Piece], text: str, partial: bool) -> Json:
        return {
            "index": pieces[0].index,
            "text": text,
            "logprobs": self._logprobs(pieces[0].index, _tokens(pieces)) if self.with_logprobs else None,
            "finish_reason": pieces[-1].finish,
        }

    def _logprobs(self, index: int, tokens: Sequence[Token]) -> Json:
        return {
            "tokens": [token.text for token in tokens],
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [{other.text: other.logprob for other in token.alternatives} for token in tokens],
            "text_offset": [self._places[index].pass_by(token.utf8) for token in tokens],
        }


class ChatAnswer(Answer):
    """The same for /v1/chat/completions."""

    kind, chunk_kind, prefix = "chat.completion", "chat.completion.chunk", "chatcmpl"

    def opening(self, choices: int) -> list[Json]:
        """Who speaks, once a choice."""
        start: Json = {"role": "assistant", "content": ""}
        return [
            {
                **self._base,
                "object": self.chunk_kind,
                "choices": [{"index": index, "delta": start, "logprobs": None, "finish_reason": None}],
            }
            for index in range(choices)
        ]

    def _choice(self, pieces: Sequence[Piece], text: str, partial: bool) -> Json:
        said: Json = {"delta": {"content": text}} if partial else {"message": {"role": "assistant", "content": text}}
        return {
            "index": pieces[0].index,
            **said,
            "logprobs": self._logprobs(pieces[0].index, _tokens(pieces)) if self.with_logprobs else None,
            "finish_reason": pieces[-1].finish,
        }

    def _logprobs(self, index: int, tokens: Sequence[Token]) -> Json:
        def entry(token: Token) -> Json:
            return {"token": token.text, "logprob": token.logprob, "bytes": list(token.utf8) or None}

        return {
            "content": [
                {**entry(token), "top_logprobs": [entry(other) for other in token.alternatives]} for token in tokens
            ]
        }


def error(message: str, kind: str = "invalid_request_error", code: str | None = None, param: str | None = None) -> Json:
    """What went wrong; `param` is what of the request, by its name."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def _tokens(pieces: Sequence[Piece]) -> list[Token]:
    return [piece.token for piece in pieces if piece.token is not None]
