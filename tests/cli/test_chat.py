"""`sconce chat`, with lines piped in and in a terminal."""

import io
import os
import pty
import select
import subprocess
import time

import pytest
from commands import sconce_here, start
from small_run import write_run
from tiny import INSTALLED

import sconce
from sconce.errors import ConfigError
from sconce.generation.session import Session

BACKEND = INSTALLED[-1]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("run"))


@pytest.fixture
def session(run):
    return Session(sconce.load(run, backend=BACKEND), max_tokens=12)


def test_turns_continue_one_document(session):
    first = "".join(session.write("a lamp"))
    second = "".join(session.write(" on the wall"))
    assert session.text == f"a lamp{first} on the wall{second}"
    expected = session.model.generate(f"a lamp{first} on the wall", max_tokens=12)
    assert second != expected, "each turn has draws of its own"
    session.set("temperature", "0")
    assert "".join(session.again()) == session.model.generate(
        f"a lamp{first} on the wall", max_tokens=12, temperature=0
    )


def test_again_draws_anew_and_undo_takes_back(session):
    one = "".join(session.write("a lamp"))
    other = "".join(session.again())
    assert one != other
    assert session.text == f"a lamp{other}"
    session.undo()
    assert session.text == ""
    with pytest.raises(ConfigError, match="nothing"):
        session.again()


def test_a_seed_repeats_a_session(session):
    texts = []
    for _ in range(2):
        session.turns.clear()
        session.set("seed", "5")
        for given in ("a", " b"):
            list(session.write(given))
        texts.append(session.text)
    assert texts[0] == texts[1]


def test_a_turn_that_is_broken_off_stays_as_far_as_it_came(session):
    pieces = session.write("a lamp")
    seen = "".join(next(pieces) for _ in range(4))
    pieces.close()
    assert session.text == f"a lamp{seen}"


def test_a_document_longer_than_the_model_loses_its_beginning(session):
    list(session.write("in the night " * 60))
    assert session.forgotten > 0
    assert session.turns[-1].written


def test_a_dialogue_ends_its_turn_where_the_other_begins(session):
    session.dialogue = True
    list(session.write("who?"))
    list(session.write("where?"))
    assert session.text.startswith("User: who?\nAssistant:")
    assert "\nUser: where?\nAssistant:" in session.text
    assert session.text.count("User:") == 2


@pytest.mark.parametrize(
    ("name", "value"), [("temprature", "1"), ("top_k", "many"), ("top_p", "2"), ("max_tokens", "0")]
)
def test_settings_that_cannot_be_are_refused(session, name, value):
    before = session.settings()
    with pytest.raises(ConfigError, match=name):
        session.set(name, value)
    assert session.settings() == before


def test_piped_lines_and_commands(run, tmp_path):
    saved = tmp_path / "saved.txt"
    lines = ["a lamp", "/temperature 0", "/again", "/nonsense", "/top_p 9", f"/save {saved}", f"/save {saved}", "/quit"]
    process = start("chat", run, "--max-tokens", 8, "--backend", BACKEND, stdin=subprocess.PIPE)
    out, err = process.communicate("\n".join(lines) + "\nnever read\n", timeout=60)
    assert process.returncode == 0, err
    greedy = sconce.load(run, backend=BACKEND).generate("a lamp", max_tokens=8, temperature=0)
    assert out.endswith(f"{greedy}\n")
    assert saved.read_text() == f"a lamp{greedy}"
    for says in ("/nonsense: no such command", "top_p: found 9", "is there already"):
        assert says in err


def test_a_setting_without_a_value_is_shown(run, monkeypatch):
    lines = ["/temperature 0.5", "/temperature", "/set top_k 7", "/set top_k", "/seed 123456789", "/set nothing"]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines)))
    shown = sconce_here("chat", run, "--backend", BACKEND).stderr.splitlines()[1:]
    assert ["temperature 0.5" in line for line in shown[:5]] == [True] * 5
    assert ["top_k 7" in line for line in shown[:5]] == [False, False, True, True, True]
    assert shown[4].endswith("seed 123456789")
    assert shown[5].startswith("nothing: no such setting")


def test_an_answer_that_the_models_positions_end_is_told_of(run, monkeypatch):
    for most, told in ((500, ["ended before max_tokens 500: the model's 128 positions are full"]), (5, [])):
        monkeypatch.setattr("sys.stdin", io.StringIO("a lamp\n"))
        done = sconce_here("chat", run, "--max-tokens", most, "--temperature", 0, "--backend", BACKEND)
        assert done.stderr.splitlines()[1:] == told


def seen_until(process, wanted, deadline):
    out = b""
    while wanted not in out.replace(b"\r\n", b"\n") and time.monotonic() < deadline:
        if select.select([process.stdout], [], [], 0.2)[0]:
            out += os.read(process.stdout.fileno(), 4096)
    assert wanted in out.replace(b"\r\n", b"\n"), out


def test_in_a_terminal(run):
    """Typed keys: a command by Tab, text, a new line by Alt-Enter, and Ctrl-D to end."""
    controller, terminal = pty.openpty()
    process = start(
        "chat", run, "--max-tokens", 8, "--temperature", 0, "--backend", BACKEND, stdin=terminal, env={"TERM": "xterm"}
    )
    os.close(terminal)
    deadline = time.monotonic() + 30
    try:
        assert process.stderr.readline().endswith("/help for what can be done\n")
        time.sleep(1)
        os.write(controller, b"/max_tok\t")  # which completes it
        seen_until(process, b"/max_tokens", deadline)
        os.write(controller, b" 9\ra lamp\x1b\ron the wall\r")
        expected = sconce.load(run, backend=BACKEND).generate("a lamp\non the wall", max_tokens=9, temperature=0)
        seen_until(process, expected.encode(), deadline)
        while process.poll() is None and time.monotonic() < deadline:
            os.write(controller, b"\x04")  # until a prompt is there to take it
            if select.select([process.stdout], [], [], 0.5)[0]:
                os.read(process.stdout.fileno(), 4096)
        assert process.returncode == 0
    finally:
        process.kill()
        process.communicate()
        os.close(controller)
