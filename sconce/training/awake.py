"""A Mac that nobody touches for hours, and that is not to fall asleep over it."""

import os
import shutil
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager, suppress


@contextmanager
def kept_awake() -> Generator[None]:
    """Keep an idle Mac from sleeping meanwhile, by macOS's own `caffeinate`; a lid that is shut stays its owner's."""
    caffeinate = shutil.which("caffeinate") if sys.platform == "darwin" else None
    if caffeinate is None:
        yield
        return
    # A session of its own: Ctrl-C is for the run, which then still has to save. With -w it does not outlive a run that
    # is killed.
    command = [caffeinate, "-i", "-w", str(os.getpid())]
    quiet = subprocess.DEVNULL
    process = None
    with suppress(OSError):  # then it may sleep
        process = subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=quiet, start_new_session=True)
    try:
        yield
    finally:
        if process is not None:
            process.terminate()
            process.wait()
