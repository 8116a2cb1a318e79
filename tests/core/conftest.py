"""Core tests run as on a machine that has neither framework: importing one fails."""

import sys

import pytest


@pytest.fixture(autouse=True)
def _no_frameworks(monkeypatch):
    for name in ("torch", "mlx", "mlx.core", "sconce_torch", "sconce_mlx"):
        monkeypatch.setitem(sys.modules, name, None)
