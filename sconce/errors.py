"""What can go wrong through no fault of ours: one clear line for the user, exit code 2, no traceback."""

from traceback import clear_frames


class SconceError(Exception):
    """Bad input or a bad environment. The message says what, where, and what to do."""

    exit_code = 2


class ConfigError(SconceError):
    """A configuration that cannot be used: unknown key, wrong type, contradiction."""


class DataError(SconceError):
    """A corpus, tokenizer or token shard that cannot be used."""


class CheckpointError(SconceError):
    """A checkpoint that is missing, damaged, or does not belong to this run."""


class BackendError(SconceError):
    """A framework or device that is not here, or a model it cannot train."""


class OutOfMemoryError(SconceError):
    """The device's memory does not suffice. `intact` says whether the weights are as before the update in progress."""

    exit_code = 1

    def __init__(self, message: str, *, intact: bool) -> None:
        super().__init__(message)
        self.intact = intact


class TrainingError(SconceError):
    """A run that cannot sensibly go on: the loss is no longer a number."""


def let_go(error: BaseException) -> None:
    """Empty the frames that an error came through, and those of the errors that it was raised in place of.

    What they hold would else live until it is handled, as whatever is raised instead holds it in turn.
    """
    cause: BaseException | None = error
    while cause is not None:
        clear_frames(cause.__traceback__)
        cause = cause.__context__


def in_short(value: object) -> str:
    """A value as it was found, for a message; a huge one cut off."""
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}..."
