"""What the API says of tokens: where each begins in its text, and the bytes that it stands for."""

import pytest

from sconce.generation.model import Piece, Token
from sconce.serving.responses import Answer, ChatAnswer, Usage
from sconce.tokenizer.bpe import train_tokenizer

TEXTS = ("naïve 🙂 and a café", "日本語, plain")  # of two choices


@pytest.fixture(scope="module")
def pieces(tmp_path_factory):
    """One token each, those of the choices in turn, as a stream has them."""
    tokenizer = train_tokenizer(["plain words, naïve ones, " * 9], 262, tmp_path_factory.mktemp("tokenizer"), [])
    encoded = [tokenizer.encode(text) for text in TEXTS]

    def token(token_id):
        likely = Token(tokenizer.eos_id, "<|eos|>", b"", -3.0)
        return Token(token_id, tokenizer.decode([token_id]), tokenizer.token_text(token_id), -1.0, (likely,))

    longest = max(map(len, encoded))
    return [
        Piece(index, "", token(ids[place]), None)
        for place in range(longest)
        for index, ids in enumerate(encoded)
        if place < len(ids)
    ]


def whole(kind, pieces):
    answer = kind("night", Usage(1), True).whole({i: [piece for piece in pieces if piece.index == i] for i in (0, 1)})
    return [choice["logprobs"] for choice in answer["choices"]]


def streamed(kind, pieces, index):
    answer = kind("night", Usage(1), True)
    choices = [choice for piece in pieces for choice in answer.chunk(piece)["choices"]]
    return [choice["logprobs"] for choice in choices if choice["index"] == index]


def test_a_tokens_offset_is_that_of_its_first_character(pieces):
    for index, text in enumerate(TEXTS):
        places = [place for place, character in enumerate(text) for _ in character.encode()]  # of every byte
        expected, begin = [], 0
        for piece in pieces:
            if piece.index == index:
                expected.append(places[begin])
                begin += len(piece.token.utf8)
        assert begin == len(places)
        assert whole(Answer, pieces)[index]["text_offset"] == expected
        assert [place for said in streamed(Answer, pieces, index) for place in said["text_offset"]] == expected


def test_a_chats_bytes_are_those_of_the_text(pieces):
    for index, text in enumerate(TEXTS):
        content = whole(ChatAnswer, pieces)[index]["content"]
        assert b"".join(bytes(token["bytes"]) for token in content) == text.encode()
        assert content[0]["top_logprobs"] == [{"token": "<|eos|>", "logprob": -3.0, "bytes": None}]
        assert [said for one in streamed(ChatAnswer, pieces, index) for said in one["content"]] == content
