"""The backends that are installed here, as a fixture."""

import pytest
from tiny import INSTALLED

from sconce.backend import load_backend


@pytest.fixture(params=INSTALLED)
def backend(request):
    """Each backend that is installed, on the device it has here."""
    return load_backend(request.param)
