"""The debug log: which files were chosen, how large they are, how long each phase took. Silent unless asked for."""

import logging
import os
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager

from sconce.errors import ConfigError

VARIABLE = "SCONCE_LOG"
LEVELS = {"debug": logging.DEBUG, "warning": logging.WARNING}

log = logging.getLogger("sconce")


def set_up_log(environment: Mapping[str, str] = os.environ) -> None:
    """Send the log to stderr if SCONCE_LOG says so. Raises ConfigError for a level that there is not."""
    level = environment.get(VARIABLE, "warning").lower()
    if level not in LEVELS:
        raise ConfigError(f"{VARIABLE}: found {level!r}, expected debug, or warning, which is the default")
    log.setLevel(LEVELS[level])
    if level == "debug" and not log.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s sconce %(message)s"))
        log.addHandler(handler)
        log.propagate = False


@contextmanager
def phase(name: str) -> Generator[None]:
    """Log how long the block took, also when it ends with an error."""
    log.debug("%s: begins", name)
    started = time.perf_counter()
    try:
        yield
    finally:
        log.debug("%s: took %.3f s", name, time.perf_counter() - started)
