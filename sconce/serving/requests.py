"""What a client may ask, in the OpenAI API's terms: checked, and turned into prompts."""

import secrets
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from sconce.errors import ConfigError
from sconce.generation.model import Prompt
from sconce.generation.sampling import Sampling

MAX_CHOICES = 128
MAX_STOPS = 16
NEUTRAL_ONLY = "neutral only"  # marks what has one value here, as any other would have to do something

Ids = Annotated[list[int], Field(min_length=1)]
Stop = Annotated[str, Field(min_length=1, max_length=1000)]


class StreamOptions(BaseModel):
    """What a stream has beside its text."""

    model_config = ConfigDict(extra="forbid")

    include_usage: bool = False


class Options(BaseModel):
    """What both kinds of request share. An unknown key is refused, and so is a known one that would do nothing.

    `top_k`, `min_p` and `repetition_penalty` are not OpenAI's. Without a seed every request draws its own.
    """

    model_config = ConfigDict(extra="forbid")

    model: str | None = None
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, ge=0, le=1)
    top_k: int = Field(default=0, ge=0)
    min_p: float = Field(default=0.0, ge=0, le=1)
    repetition_penalty: float = 1.0
    n: int | None = Field(default=None, ge=1, le=MAX_CHOICES)
    stop: Stop | Annotated[list[Stop], Field(max_length=MAX_STOPS)] | None = None
    seed: int | None = Field(default=None, ge=0)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None  # a name for the client's own records
    frequency_penalty: Annotated[Literal[0] | None, NEUTRAL_ONLY] = None
    presence_penalty: Annotated[Literal[0] | None, NEUTRAL_ONLY] = None
    logit_bias: Annotated[Annotated[dict[str, float], Field(max_length=0)] | None, NEUTRAL_ONLY] = None

    @model_validator(mode="after")
    def _check_stream(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise PydanticCustomError("idle", "stream_options has no meaning without stream")
        return self

    @model_validator(mode="after")
    def _check_sampling(self) -> Self:
        try:
            _ = self.sampling
        except ConfigError as bad:
            raise PydanticCustomError("range", "{bad}", {"bad": str(bad)}) from None
        return self

    @property
    def sampling(self) -> Sampling:
        """As OpenAI's defaults have it: temperature 1, every token a candidate."""
        return Sampling(
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
        )

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def with_usage(self) -> bool:
        """Whether a stream ends with a count of tokens."""
        return self.stream_options is not None and self.stream_options.include_usage

    def each(
        self, texts: list[str | tuple[int, ...]], max_tokens: int, stop: tuple[str, ...], alternatives: int | None
    ) -> list[Prompt]:
        """`n` prompts of each text."""
        seed = secrets.randbits(32) if self.seed is None else self.seed
        return [
            Prompt(
                text=text,
                max_tokens=max_tokens,
                sampling=self.sampling,
                seed=seed,
                choice=choice,
                stop=stop,
                alternatives=alternatives,
            )
            for text in texts
            for choice in range(self.n or 1)
        ]


class CompletionRequest(Options):
    """POST /v1/completions."""

    prompt: str | Annotated[list[str], Field(min_length=1)] | Ids | Annotated[list[Ids], Field(min_length=1)] = ""
    max_tokens: int | None = Field(default=None, ge=1)
    logprobs: int | None = Field(default=None, ge=0, le=20)
    echo: Annotated[Literal[False] | None, NEUTRAL_ONLY] = None
    best_of: Annotated[Literal[1] | None, NEUTRAL_ONLY] = None
    suffix: Annotated[Literal[""] | None, NEUTRAL_ONLY] = None

    @property
    def texts(self) -> list[str | tuple[int, ...]]:
        """Every prompt, as text or as ids."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        ids = [part for part in self.prompt if isinstance(part, int)]
        if ids:
            return [tuple(ids)]
        return [part if isinstance(part, str) else tuple(part) for part in self.prompt if not isinstance(part, int)]

    def prompts(self) -> list[Prompt]:
        """One for each choice of the answer, in order."""
        return self.each(self.texts, self.max_tokens or 16, self.stops, self.logprobs)


class Part(BaseModel):
    """A part of a message: text, the only kind there is."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["text"]
    text: str


class Message(BaseModel):
    """One turn of a conversation."""

    model_config = ConfigDict(extra="forbid")

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part]

    @property
    def text(self) -> str:
        """What was said."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class ChatRequest(Options):
    """POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    response_format: dict[Literal["type"], Literal["text"]] | None = None

    @model_validator(mode="after")
    def _check_idle(self) -> Self:
        if self.top_logprobs is not None and not self.logprobs:
            raise PydanticCustomError("idle", "top_logprobs has no meaning without logprobs")
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise PydanticCustomError("idle", "max_tokens is the old name of max_completion_tokens: give one of them")
        return self

    def prompts(self, longest: int, ids: tuple[int, ...] | None) -> list[Prompt]:
        """One for each choice; without a limit an answer may take `longest` tokens.

        `ids` are the conversation where the model has a chat template, else it is put as `transcript` does.
        """
        limit = self.max_completion_tokens or self.max_tokens or longest
        alternatives = (self.top_logprobs or 0) if self.logprobs else None
        if ids is not None:
            return self.each([ids], limit, self.stops, alternatives)
        return self.each([transcript(self.messages)], limit, (*self.stops, *TURNS), alternatives)

    @property
    def turns(self) -> list[tuple[str, str]]:
        """Role and text of each message, as chat templates name them."""
        return [("system" if message.role == "developer" else message.role, message.text) for message in self.messages]


NAMES = frozenset(
    name for model in (CompletionRequest, ChatRequest, StreamOptions, Message, Part) for name in model.model_fields
)
NEUTRAL = frozenset(
    name
    for model in (CompletionRequest, ChatRequest)
    for name, field in model.model_fields.items()
    if NEUTRAL_ONLY in field.metadata
)
TURNS = ("\nUser:", "\nSystem:", "\nAssistant:")


def transcript(messages: list[Message]) -> str:
    """The conversation as a base model may have met it in text: names, colons, and the next name to speak.

    An answer that is sent back begins with the space that the model wrote after the colon.
    """
    names = {"system": "System", "developer": "System", "user": "User", "assistant": "Assistant"}
    said = (f"{names[message.role]}: {message.text.removeprefix(' ')}\n" for message in messages)
    return "".join(said) + "Assistant:"
