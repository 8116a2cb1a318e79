"""What is behind an error of the hub's libraries, whether another try may help, and what of it may be shown."""

from types import SimpleNamespace

import pytest

from sconce.hub_faults import may_pass, one_line, origin, status_of

errors = pytest.importorskip("huggingface_hub.errors")


def answer(status):
    return errors.HfHubHTTPError("said", response=SimpleNamespace(status_code=status, headers={}, request=None))


def wrapped(outer, inner, *, explicitly=True):
    """`outer` as it comes when it is raised from `inner`, or only while that is handled."""
    if explicitly:
        outer.__cause__ = inner
    else:
        outer.__context__ = inner
    return outer


@pytest.mark.parametrize(
    ("error", "passes"),
    [
        *[(answer(status), True) for status in (408, 429, 500, 503)],
        *[(answer(status), False) for status in (400, 401, 403, 404, 409)],
        (ConnectionResetError("gone"), True),
        (TimeoutError("slow"), True),
        (wrapped(FileNotFoundError("nothing here"), answer(503)), True),
        (wrapped(RuntimeError("no"), answer(503), explicitly=False), True),
        (wrapped(FileNotFoundError("nothing here"), answer(404)), False),
        (wrapped(errors.LocalEntryNotFoundError("not in the cache"), ConnectionResetError("gone")), True),
        (errors.OfflineModeIsEnabled("offline"), False),
        (ZeroDivisionError("ours"), False),
        (FileNotFoundError("the disk's"), False),
    ],
)
def test_what_may_pass(error, passes):
    assert may_pass(error) is passes


def test_what_is_behind_an_error():
    inner = answer(503)
    outer = wrapped(errors.LocalEntryNotFoundError("not in the cache"), inner)
    assert origin(outer) is inner
    assert status_of(inner) == 503
    own = ValueError("of nobody else")
    assert origin(own) is own
    assert status_of(own) is None


def test_the_token_is_in_no_line(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert one_line("Bearer hf_secret\n  was not\taccepted") == "Bearer <token> was not accepted"
