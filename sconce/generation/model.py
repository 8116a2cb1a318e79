"""A checkpoint's model with its tokenizer: text in, text or numbers out."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from sconce.attention import check_decoding, wanted_attention
from sconce.backend import ComputeOptions, DeviceInfo, Hardware, LanguageModel, Precision, load_backend
from sconce.checkpoint.load import open_model
from sconce.errors import ConfigError, DataError
from sconce.generation.engine import Engine, Event, Figures, Finish, Request
from sconce.generation.sampling import Sampling
from sconce.generation.text import TextStream
from sconce.interop.hf import spec_from_config
from sconce.spec import ModelSpec
from sconce.tokenizer.bpe import Tokenizer, load_tokenizer

MAX_ROWS = 32  # sequences decoded at once


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """Text, or token ids, to continue, and how; see Request. An empty text starts a document.

    Raises ConfigError for no tokens to come, a seed below 0, or an empty stop string.
    """

    text: str | tuple[int, ...]
    max_tokens: int = 200
    sampling: Sampling = field(default_factory=Sampling)
    seed: int = 0
    choice: int = 0
    stop: tuple[str, ...] = ()
    alternatives: int | None = None

    def __post_init__(self) -> None:
        for name, value, least in (("max_tokens", self.max_tokens, 1), ("seed", self.seed, 0)):
            if value < least:
                raise ConfigError(f"{name}: found {value}, expected at least {least}")
        if "" in self.stop:
            raise ConfigError("stop: found an empty text, expected one that what is written may come to")


@dataclass(frozen=True, slots=True)
class Token:
    """A token that was drawn: its id, text (U+FFFD for a part of a character) and natural log-probability.

    `utf8` are the very bytes of its text, none for a special token. `alternatives` have none of their own.
    """

    id: int
    text: str
    utf8: bytes
    logprob: float | None
    alternatives: tuple["Token", ...] = ()


@dataclass(frozen=True, slots=True)
class Piece:
    """What one step adds to prompt number `index`: certain text, and the token that brought it."""

    index: int
    text: str
    token: Token | None
    finish: Finish | None


@dataclass(frozen=True, slots=True)
class Completion:
    """What continues a prompt. `finish` is "stop" at the end of a document or a stop string, else "length"."""

    text: str
    tokens: tuple[Token, ...]
    finish: Finish
    prompt_tokens: int


class Writer:
    """One prompt's way from events to text."""

    def __init__(self, tokenizer: Tokenizer, prompt: Prompt, index: int = 0) -> None:
        self._tokenizer, self._index = tokenizer, index
        self._stream = TextStream(tokenizer, prompt.stop)

    def piece(self, event: Event) -> Piece:
        """The event as text. A finish of its own, at a stop string, means: cancel the request."""
        text = "" if event.token is None else self._stream.push(event.token)
        finish: Finish | None = "stop" if self._stream.stopped else event.finish
        if finish is not None:
            text += self._stream.finish()
        return Piece(self._index, text, self._token(event), finish)

    def _token(self, event: Event) -> Token | None:
        if event.token is None:
            return None
        spelled = self._tokenizer.token_text
        likely = tuple(
            Token(other, self._tokenizer.decode([other], skip_special=False), spelled(other), logprob)
            for other, logprob in event.alternatives
        )
        text = self._tokenizer.decode([event.token])
        return Token(event.token, text, spelled(event.token), event.logprob, likely)


class TextModel:
    """A model that is loaded, with its tokenizer; `sconce.load` makes one.

    `generate` continues a text, `complete` and `stream` several at once with every token's log-probability, `logits`
    are the bare numbers, `encode` gives token ids. `path` is the checkpoint and `spec` the model's sizes.
    """

    def __init__(self, *, path: Path, spec: ModelSpec, tokenizer: Tokenizer, model: LanguageModel) -> None:
        self.path = path
        self.spec = spec
        self.tokenizer = tokenizer
        self.model = model

    def __repr__(self) -> str:
        return f"<TextModel of {self.path}, {self.spec.num_params:,} parameters>"

    def encode(self, text: str | Sequence[int]) -> list[int]:
        """Token ids of a prompt; an empty one is the end of the document before it, unless texts begin with BOS.

        Raises DataError for an id that the model does not have.
        """
        if isinstance(text, str):
            (ids,) = self.tokenizer.encode_batch([text])  # unlike a single one, it lets other threads run meanwhile
            ids = [*self.tokenizer.prefix, *ids]
        else:
            ids = list(text)
        if (unknown := next((token for token in ids if not 0 <= token < self.spec.vocab_size), None)) is not None:
            raise DataError(f"token id {unknown}: the model's are 0 to {self.spec.vocab_size - 1}")
        return ids or [self.tokenizer.eos_id]

    @property
    def has_chat_template(self) -> bool:
        """Whether the model was taught to read conversations in a form of their own."""
        return self.tokenizer.chat_template is not None

    def chat(self, messages: Sequence[tuple[str, str]]) -> tuple[int, ...]:
        """Token ids of turns of (role, text) by the chat template, up to where the next answer begins.

        Raises DataError when the template refuses them.
        """
        from sconce.generation.chat_template import chat_ids  # noqa: PLC0415 (few models have a template)

        return chat_ids(self.tokenizer, [{"role": role, "content": text} for role, text in messages])

    def request(self, prompt: Prompt) -> Request:
        """The prompt for an engine of this model. Raises DataError when it fills every position."""
        ids = self.encode(prompt.text)
        if len(ids) >= self.spec.max_position_embeddings:
            raise DataError(
                f"the prompt is {len(ids)} tokens long; the model has {self.spec.max_position_embeddings} positions, "
                "and at least one is for what comes: shorten it"
            )
        return Request(
            prompt=ids,
            max_tokens=prompt.max_tokens,
            sampling=prompt.sampling,
            seed=prompt.seed,
            choice=prompt.choice,
            stop_ids=frozenset((self.tokenizer.eos_id,)),
            alternatives=prompt.alternatives,
        )

    def engine(self, rows: int) -> Engine:
        """An engine for up to `rows` prompts at once. Raises ConfigError for an ATTN_BACKEND that it has not."""
        check_decoding()
        return Engine(self.model, rows=rows, max_len=self.spec.max_position_embeddings)

    def stream(self, prompts: Sequence[Prompt], figures: Figures | None = None) -> Iterator[Piece]:
        """Pieces of text that continue the prompts, decoded together, as they come; adds to `figures`.

        Every prompt ends with a piece that has a `finish`: after its `max_tokens`, where a document or the model's
        positions end, or before a stop string. Raises DataError for a prompt that fills every position.
        """
        return self._stream(prompts, [self.request(prompt) for prompt in prompts], figures, MAX_ROWS)

    def _stream(
        self, prompts: Sequence[Prompt], requests: Sequence[Request], figures: Figures | None, rows: int
    ) -> Iterator[Piece]:
        engine = self.engine(min(len(prompts), rows))
        engine.figures = figures or engine.figures
        writers = {
            engine.add(request): Writer(self.tokenizer, prompt, index)
            for index, (request, prompt) in enumerate(zip(requests, prompts, strict=True))
        }
        while not engine.idle:
            for event in engine.step():
                piece = writers[event.ticket].piece(event)
                if piece.finish is not None and event.finish is None:
                    engine.cancel(event.ticket)
                yield piece

    def complete(
        self, prompts: Sequence[Prompt], figures: Figures | None = None, rows: int = MAX_ROWS
    ) -> list[Completion]:
        """What continues each prompt, `rows` of them decoded together at a time; as `stream`."""
        requests = [self.request(prompt) for prompt in prompts]
        texts: list[list[str]] = [[] for _ in prompts]
        tokens: list[list[Token]] = [[] for _ in prompts]
        ends: dict[int, Finish] = {}
        for piece in self._stream(prompts, requests, figures, rows):
            texts[piece.index].append(piece.text)
            if piece.token is not None:
                tokens[piece.index].append(piece.token)
            if piece.finish is not None:
                ends[piece.index] = piece.finish
        return [
            Completion("".join(texts[index]), tuple(tokens[index]), ends[index], len(request.prompt))
            for index, request in enumerate(requests)
        ]

    def generate(  # noqa: PLR0913 (the options of Sampling, by name, for people at a prompt)
        self,
        prompt: str = "",
        *,
        max_tokens: int = 200,
        temperature: float = 0.8,
        top_k: int = 50,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        seed: int = 0,
        stop: str | Sequence[str] = (),
    ) -> str:
        """The text that continues `prompt`, without it; an empty prompt begins a document.

        It ends before the first of the texts in `stop`, where the model ends its document, after `max_tokens`, or where
        the model's positions are full. `temperature` 0 takes the likeliest token every time, and higher ones draw more
        freely: among the `top_k` likeliest tokens (0: all), of these the fewest that hold `top_p` of the probability,
        and of these the ones at least `min_p` times as likely as the likeliest. A `repetition_penalty` above 1 avoids
        tokens that were there already. The same `seed` gives the same text; in fp32 on the other backend too, but for
        the rare draw where two candidates are equal to within rounding.

        Raises ConfigError for an option out of range, DataError for a prompt that fills every position.
        """
        sampling = Sampling(
            temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, repetition_penalty=repetition_penalty
        )
        stops = (stop,) if isinstance(stop, str) else tuple(stop)
        asked = Prompt(text=prompt, max_tokens=max_tokens, sampling=sampling, seed=seed, stop=stops)
        return self.complete([asked])[0].text

    def logits(self, text: str | Sequence[int]) -> NDArray[np.float32]:
        """Next-token logits after each of the n tokens of `text` (or of its ids, see `encode`), float32 (n, vocab).

        Raises DataError for more tokens than the model has positions, or an id that it does not have.
        """
        ids = self.encode(text)
        if len(ids) > self.spec.max_position_embeddings:
            raise DataError(f"found {len(ids)} tokens; the model has {self.spec.max_position_embeddings} positions")
        return self.model.logits(np.array([ids], np.int32))[0]


def load_model(
    place: Path, *, hardware: Hardware = "auto", precision: Precision = "fp32"
) -> tuple[TextModel, DeviceInfo]:
    """The model of the checkpoint at `place` (or the latest of that run), without its optimizer, and where it runs.

    Raises CheckpointError when there is no intact checkpoint, BackendError for hardware that is not here, ConfigError
    for a precision that there is not, or an ATTN_* variable that would do nothing.
    """
    if precision not in get_args(Precision):
        raise ConfigError(f"dtype: found {precision!r}, expected one of {', '.join(get_args(Precision))}")
    options = ComputeOptions(precision=precision, attention=wanted_attention())
    checkpoint = open_model(place)
    tokenizer = load_tokenizer(checkpoint.path / "tokenizer.json")
    spec = spec_from_config(checkpoint.table("config.json"))
    backend = load_backend(hardware)
    model = backend.language_model(spec, options, checkpoint.weights)
    return TextModel(path=checkpoint.path, spec=spec, tokenizer=tokenizer, model=model), backend.device()
