"""The backends that are installed here, as a fixture."""

import os

import pytest
from tiny import INSTALLED

from sconce.backend import load_backend

# Tests run on every core side by side; each may then compute on one. Read when a framework is first imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(params=INSTALLED)
def backend(request):
    """Each backend that is installed, on the device it has here."""
    return load_backend(request.param)
