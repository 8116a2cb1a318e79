"""A document that a person and a model write in turns."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from sconce.errors import ConfigError, SconceError
from sconce.generation.engine import Figures, Finish
from sconce.generation.model import Piece, Prompt, TextModel
from sconce.generation.sampling import Sampling

SETTINGS = {
    "temperature": float,
    "top_k": int,
    "top_p": float,
    "min_p": float,
    "repetition_penalty": float,
    "max_tokens": int,
    "seed": int,
}


@dataclass(slots=True)
class Turn:
    """What a person gave, and what the model wrote then."""

    given: str
    written: str = ""


@dataclass(slots=True)
class Session:
    """Turns, and how the next is drawn.

    In a dialogue each turn is a person's line and an answer, by the model's chat template if it has one, else as
    `User: …` and `Assistant: …` lines.

    Every turn and every new attempt at one draws differently, and all of it again from the same `seed`.
    """

    model: TextModel
    dialogue: bool = False
    sampling: Sampling = field(default_factory=Sampling)
    max_tokens: int = 200
    seed: int = 0
    turns: list[Turn] = field(default_factory=list[Turn])
    figures: Figures = field(default_factory=Figures)
    forgotten: int = 0  # tokens of the beginning that the last turn had no room for
    finish: Finish | None = None
    _attempts: int = 0

    @property
    def templated(self) -> bool:
        """Whether turns reach the model by its chat template."""
        return self.dialogue and self.model.has_chat_template

    @property
    def text(self) -> str:
        """The whole document, a templated dialogue as User's and Assistant's lines too."""
        return "".join(self._given(turn) + turn.written for turn in self.turns)

    def write(self, given: str) -> Iterator[str]:
        """Add a person's text and yield the model's as it comes; what has come stays when this is not run to its end.

        The beginning of a document that is too long is left out. Raises DataError, and nothing is added, for a turn
        that the chat template refuses, or that alone fills the model.
        """
        self.turns.append(Turn(given))
        try:
            return self._continue()
        except SconceError:
            self.turns.pop()
            raise

    def again(self) -> Iterator[str]:
        """Another continuation in place of the last one. Raises ConfigError when there is none, else as `write`."""
        if not self.turns:
            raise ConfigError("there is nothing yet to write again")
        turn = self.turns[-1]
        before, turn.written = turn.written, ""
        try:
            return self._continue()
        except SconceError:
            turn.written = before
            raise

    def undo(self) -> Turn:
        """Take the last turn back. Raises ConfigError when there is none."""
        if not self.turns:
            raise ConfigError("there is nothing to take back")
        return self.turns.pop()

    def set(self, name: str, value: str) -> None:
        """Change a setting. Raises ConfigError for one that there is not, or a value that it cannot have."""
        if name not in SETTINGS:
            raise ConfigError(f"{name}: no such setting; expected one of {', '.join(SETTINGS)}")
        try:
            parsed = SETTINGS[name](value)
        except ValueError:
            raise ConfigError(f"{name}: found {value!r}, expected a number") from None
        if name == "seed" and parsed >= 0:
            self.seed, self._attempts = int(parsed), 0
        elif name == "max_tokens" and parsed > 0:
            self.max_tokens = int(parsed)
        elif name in ("seed", "max_tokens"):
            raise ConfigError(f"{name}: found {value}, expected more")
        else:
            self.sampling = replace(self.sampling, **{name: parsed})

    def settings(self) -> dict[str, float]:
        """Every setting."""
        return {name: getattr(self if name in ("seed", "max_tokens") else self.sampling, name) for name in SETTINGS}

    def _given(self, turn: Turn) -> str:
        if not self.dialogue:
            return turn.given
        opening = "" if turn is self.turns[0] else "\n"
        return f"{opening}User: {turn.given}\nAssistant:" + (" " if self.templated else "")

    def _continue(self) -> Iterator[str]:
        """What the model writes in the last turn; what stands in its way is raised here, not on the way."""
        prompt = Prompt(
            text=self._conversation() if self.templated else self._document(),
            max_tokens=self.max_tokens,
            sampling=self.sampling,
            seed=self.seed,
            choice=self._attempts,
            stop=("\nUser:",) if self.dialogue and not self.templated else (),
        )
        figures = Figures()
        pieces = self.model.stream([prompt], figures)
        self._attempts += 1
        self.figures, self.finish = figures, None
        return self._written(self.turns[-1], pieces)

    def _written(self, turn: Turn, pieces: Iterator[Piece]) -> Iterator[str]:
        for piece in pieces:
            turn.written += piece.text
            self.finish = piece.finish
            yield piece.text

    @property
    def _room(self) -> int:
        """Positions for what was said so far; what comes needs some too."""
        positions = self.model.spec.max_position_embeddings
        return max(1, positions - min(self.max_tokens, positions // 2))

    def _document(self) -> tuple[int, ...]:
        """The end of the document that there is room for."""
        ids = self.model.encode(self.text)
        self.forgotten = max(0, len(ids) - self._room)
        return tuple(ids[self.forgotten :])

    def _conversation(self) -> tuple[int, ...]:
        """The last turns that there is room for, whole, as a template has them; the very last in any case.

        Raises DataError when that alone fills the model.
        """
        whole = self.model.chat(self._messages(self.turns))
        kept = whole
        for start in range(1, len(self.turns)):
            if len(kept) <= self._room:
                break
            kept = self.model.chat(self._messages(self.turns[start:]))
        self.forgotten = len(whole) - len(kept)
        return kept

    def _messages(self, turns: list[Turn]) -> list[tuple[str, str]]:
        said = [pair for turn in turns for pair in (("user", turn.given), ("assistant", turn.written))]
        return said[:-1]  # the last answer is what comes
