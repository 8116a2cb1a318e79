"""Only a Mac is kept awake, and only for as long as it trains."""

import os
import sys
import time

from sconce.training.awake import kept_awake


def test_an_idle_mac_does_not_sleep_meanwhile(tmp_path, monkeypatch):
    asked, tool = tmp_path / "asked", tmp_path / "caffeinate"
    tool.write_text(f'#!/bin/sh\necho "$@" > {asked}.part && mv {asked}.part {asked}\nexec sleep 60\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(sys, "platform", "linux")
    with kept_awake():
        pass
    assert not asked.exists()
    monkeypatch.setattr(sys, "platform", "darwin")
    began = time.monotonic()
    with kept_awake():
        while not asked.exists() and time.monotonic() < began + 30:
            time.sleep(0.01)
        assert asked.read_text().split() == ["-i", "-w", str(os.getpid())]
    assert time.monotonic() < began + 50, "it was waited for instead of ended"
