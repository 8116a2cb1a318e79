"""Text that comes token by token is the text of all tokens, up to a stop string."""

import numpy as np
import pytest

from sconce.generation.text import TextStream
from sconce.tokenizer.bpe import train_tokenizer

TEXT = "naïve café — “quotes” 日本語 🙂🙃 and plain words, and plain words again. "


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return train_tokenizer([TEXT * 5], 300, tmp_path_factory.mktemp("tokenizer"), [])


def streamed(tokenizer, ids, stop=()):
    stream, pieces = TextStream(tokenizer, stop), []
    for token in ids:
        pieces.append(stream.push(token))
        if stream.stopped:
            break
    return [*pieces, stream.finish()]


def test_pieces_are_whole_characters_and_add_up(tokenizer):
    pieces = streamed(tokenizer, tokenizer.encode(TEXT))
    assert "".join(pieces) == TEXT
    assert len(tokenizer.encode("🙂")) > 1, "a character of several tokens must be among them"
    assert not any("\ufffd" in piece for piece in pieces)


def test_any_bytes_come_out_as_the_tokenizer_decodes_them(tokenizer):
    rng = np.random.default_rng(0)
    for _ in range(200):
        ids = rng.integers(0, tokenizer.vocab_size, 12).tolist()
        assert "".join(streamed(tokenizer, ids)) == tokenizer.decode(ids)


@pytest.mark.parametrize("stop", ["plain", "lain wor", "日本", "🙃 a", "n", "words again. ", "never there"])
def test_nothing_of_a_stop_string_is_shown(tokenizer, stop):
    pieces = streamed(tokenizer, tokenizer.encode(TEXT), ["not this one", stop])
    assert "".join(pieces) == TEXT.split(stop, maxsplit=1)[0]


def test_the_start_of_a_stop_string_is_held_back_until_it_is_certain(tokenizer):
    stream = TextStream(tokenizer, ["words, and then"])
    shown = [stream.push(token) for token in tokenizer.encode("words, and")]
    assert "".join(shown) == ""
    assert "".join(stream.push(token) for token in tokenizer.encode(" p")) + stream.finish() == "words, and p"
