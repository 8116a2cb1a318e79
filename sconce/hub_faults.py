"""Faults of the Hugging Face hub and of the way to it: what is behind one, whether another try may help, and in a line.

Whoever asks has imported huggingface_hub: an error of its kinds is in hand.
"""

from functools import cache
from importlib import import_module
from typing import Any

OFFLINE = "HF_HUB_OFFLINE is set, so the hub is not asked: unset it"
_CLIENTS = ("httpx", "httpx2", "requests")


@cache
def connection_errors() -> tuple[type[BaseException], ...]:
    """What a connection that fails raises: the errors of the client that huggingface_hub is built on, and the system's.

    The library's own error for an answer of the hub is one of the client's.
    """
    kinds = _errors().HfHubHTTPError.__mro__
    return (*(kind for kind in kinds if kind.__module__.split(".")[0] in _CLIENTS), ConnectionError, TimeoutError)


def origin(error: BaseException) -> BaseException:
    """The hub's answer, or the connection's failure, where libraries wrap it; else the error itself."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, connection_errors()) and not isinstance(seen, _errors().LocalEntryNotFoundError):
            return seen
        seen = seen.__cause__ or seen.__context__
    return error


def status_of(error: BaseException) -> int | None:
    """The status of the hub's answer, where an error is one."""
    return getattr(getattr(error, "response", None), "status_code", None)


def status_may_pass(status: int) -> bool:
    """Whether the same request may be answered a moment later."""
    return status in (408, 429) or status >= 500


def may_pass(error: BaseException) -> bool:
    """Whether what failed may go well a moment later."""
    found = origin(error)
    if (status := status_of(found)) is not None:
        return status_may_pass(status)
    return isinstance(found, connection_errors()) and not isinstance(found, _errors().OfflineModeIsEnabled)


def one_line(text: str) -> str:
    """A library's words on one line and without the token, wherever the hub or the library may have put it."""
    try:
        token: str | None = import_module("huggingface_hub").get_token()
    except Exception:  # noqa: BLE001 (it is asked for only to be taken out)
        token = None
    line = " ".join(text.split())
    return line.replace(token, "<token>") if token else line


def _errors() -> Any:  # noqa: ANN401 - of a library that is an extra
    return import_module("huggingface_hub.errors")
