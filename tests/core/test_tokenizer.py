"""The tokenizer: lossless, deterministic, and plain about what it cannot use."""

import hashlib
import json
from pydoc_data import topics

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, processors

from sconce.errors import DataError
from sconce.tokenizer.bpe import describe, load_tokenizer, train_tokenizer

TEXTS = [text for _, text in sorted(topics.topics.items())][:40]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return train_tokenizer(TEXTS, 600, tmp_path_factory.mktemp("tokenizer"), [{"path": "topics"}])


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_comes_back(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert sum(tokenizer.token_bytes[ids]) == len(text.encode())


@pytest.mark.parametrize("text", ["", "\0a\r\nb\r", "\U0001f9ff é \u4e2d", " \t\n\n ", "<|eos|> <|bos|>x<|pad|>"])
def test_awkward_text_comes_back_without_special_tokens(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert not {0, 1, 2} & set(ids)
    assert tokenizer.encode_batch([text, "x"]) == [ids, tokenizer.encode("x")]


def test_layout(tokenizer):
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id, tokenizer.vocab_size) == (1, 1, 2, 600)
    assert tokenizer.token_bytes.shape == (600,)
    assert list(tokenizer.token_bytes[:3]) == [0, 0, 0]
    assert tokenizer.decode([0, *tokenizer.encode("hi"), 1]) == "hi"
    assert tokenizer.decode([0, 1], skip_special=False) == "<|bos|><|eos|>"


def test_same_text_same_files_and_a_true_manifest(tokenizer, tmp_path):
    again = train_tokenizer(iter(TEXTS), 600, tmp_path, [{"path": "topics"}])
    for name in ("tokenizer.json", "manifest.json"):
        assert (tmp_path / name).read_bytes() == tokenizer.path.with_name(name).read_bytes()
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["sha256"] == again.sha256 == hashlib.sha256(again.path.read_bytes()).hexdigest()
    assert manifest["trained_on"]["documents"] == len(TEXTS)
    assert manifest["trained_on"]["utf8_bytes"] == sum(len(text.encode()) for text in TEXTS)
    whole = "".join(text + "\0" for text in TEXTS).encode()
    assert manifest["trained_on"]["sha256"] == hashlib.sha256(whole).hexdigest()


def test_too_small_a_vocabulary(tmp_path):
    with pytest.raises(DataError, match="the least is 259"):
        train_tokenizer(TEXTS, 258, tmp_path / "new", [])
    assert list(tmp_path.iterdir()) == []


def test_too_little_text_says_what_would_work(tmp_path):
    with pytest.raises(DataError, match=r"support a vocabulary of (\d+) tokens, not 5000") as raised:
        train_tokenizer(["low lower lowest low"], 5000, tmp_path / "new", [])
    assert list(tmp_path.iterdir()) == []
    supported = int(str(raised.value).split("vocabulary of ")[1].split()[0])
    assert train_tokenizer(["low lower lowest low"], supported, tmp_path / "new", []).vocab_size == supported


def test_an_error_in_the_texts_gets_through(tmp_path):
    def texts():
        yield "some text"
        raise DataError("a bad file")

    with pytest.raises(DataError, match="a bad file"):
        train_tokenizer(texts(), 300, tmp_path, [])


def test_a_changed_file_is_noticed(tokenizer, tmp_path):
    for name in ("tokenizer.json", "manifest.json"):
        (tmp_path / name).write_bytes(tokenizer.path.with_name(name).read_bytes())
    assert load_tokenizer(tmp_path / "tokenizer.json").sha256 == tokenizer.sha256
    (tmp_path / "tokenizer.json").write_text((tmp_path / "tokenizer.json").read_text() + "\n")
    with pytest.raises(DataError, match="changed after training"):
        load_tokenizer(tmp_path / "tokenizer.json")
    (tmp_path / "manifest.json").write_text('{"format": "some other program"}')
    load_tokenizer(tmp_path / "tokenizer.json")


@pytest.mark.parametrize("content", ["", "{", "[]", '{"model": 3}', '{"model": {"type": "BPE"}}', "\udcff"])
def test_what_is_no_tokenizer_is_one_line(content, tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text(content, errors="surrogateescape")
    with pytest.raises(DataError, match=r"tokenizer\.json") as raised:
        load_tokenizer(path)
    assert "\n" not in str(raised.value)


def test_unsuitable_tokenizers(tokenizer, tmp_path):
    path = tmp_path / "tokenizer.json"
    with pytest.raises(DataError, match="no such tokenizer file"):
        load_tokenizer(path)
    tokenizers.Tokenizer(models.WordLevel({"a": 0}, unk_token="a")).save(str(path))
    with pytest.raises(DataError, match="expected a BPE model with a ByteLevel decoder, found WordLevel"):
        load_tokenizer(path)
    path.write_text(tokenizer.path.read_text().replace("<|eos|>", "<|stop|>"))
    with pytest.raises(DataError, match="no end-of-text token"):
        load_tokenizer(path)
    path.write_text(tokenizer.path.read_text().replace("<|eos|>", "<|endoftext|>").replace("<|pad|>", "<|x|>"))
    assert (load_tokenizer(path).eos_id, load_tokenizer(path).pad_id) == (1, None)


def test_tokens_added_by_others_are_counted(tokenizer, tmp_path):
    bpe = tokenizers.Tokenizer.from_file(str(tokenizer.path))
    bpe.add_tokens([tokenizers.AddedToken("<tab é>", normalized=False)])
    bpe.save(str(tmp_path / "tokenizer.json"))
    theirs = load_tokenizer(tmp_path / "tokenizer.json")
    assert theirs.vocab_size == 601
    assert theirs.token_bytes[600] == len("<tab é>".encode())


def test_describe(tokenizer):
    facts = describe(tokenizer, TEXTS[0])
    assert facts["merges"] == 600 - 259
    assert facts["bytes_per_token"] == pytest.approx(len(TEXTS[0].encode()) / len(tokenizer.encode(TEXTS[0])))
    lengths = [len(token.encode()) for token in facts["longest_tokens"]]
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[0] == tokenizer.token_bytes.max()


def with_bos(folder, tokenizer, template=None, said=None):
    """A copy of `tokenizer` whose post-processor is `template`, and of whose BOS tokenizer_config.json says `said`."""
    content = json.loads(tokenizer.content)
    if template is not None:
        bpe = Tokenizer.from_str(json.dumps(content))
        bpe.post_processor = processors.TemplateProcessing(
            single=template, special_tokens=[("<|bos|>", 0), ("<|eos|>", 1)]
        )
        content = json.loads(bpe.to_str())
    folder.mkdir()
    (folder / "tokenizer.json").write_text(json.dumps(content))
    if said is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(said))
    return load_tokenizer(folder / "tokenizer.json")


@pytest.mark.parametrize(
    ("template", "said", "bos_id", "prefix"),
    [
        (None, None, 1, []),  # documents lie one after another: a text follows the end of the one before
        ("<|bos|> $A", None, 0, [0]),
        ("<|bos|> $A <|eos|>", None, 0, [0]),
        ("$A <|eos|>", None, 1, []),
        (None, {"bos_token": "<|bos|>"}, 0, []),
        (None, {"bos_token": None}, None, []),
        ("<|bos|> $A", {"bos_token": "<|bos|>"}, 0, [0]),
    ],
)
def test_bos_is_what_texts_begin_with(tokenizer, tmp_path, template, said, bos_id, prefix):
    made = with_bos(tmp_path / "own", tokenizer, template, said)
    assert (made.bos_id, made.prefix, made.eos_id) == (bos_id, prefix, 1)
