"""What benchmarks ask of a model, against its logits; the harness itself is not needed."""

import numpy as np
import pytest
from small_run import write_run
from tiny import INSTALLED

import sconce
from sconce.errors import ConfigError, DataError
from sconce.evaluation.requests import log_likelihoods, write_continuations


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("models") / "night", scale=3.0)


@pytest.mark.parametrize("backend", INSTALLED)
def test_a_batch_changes_nothing(run, backend):
    model = sconce.load(run, backend=backend)
    rng = np.random.default_rng(1)
    pairs = [
        (rng.integers(3, 280, context).tolist(), rng.integers(3, 280, continuation).tolist())
        for context, continuation in ((1, 1), (5, 3), (200, 2), (1, 128), (90, 60), (2, 9), (127, 1))
    ]
    logits = [model.logits((context + continuation)[-129:][:-1]) for context, continuation in pairs]
    for (_, continuation), found, logits_TV in zip(pairs, log_likelihoods(model, pairs, 3), logits, strict=True):
        scores_TV = logits_TV[-len(continuation) :].astype(np.float64)
        logprobs = scores_TV - np.log(np.exp(scores_TV - scores_TV.max(-1, keepdims=True)).sum(-1, keepdims=True))
        logprobs -= scores_TV.max(-1, keepdims=True)
        wanted = sum(logprobs[index, token] for index, token in enumerate(continuation))
        assert found == (pytest.approx(wanted, rel=1e-5), scores_TV.argmax(-1).tolist() == continuation)
    likeliest = int(model.logits([5, 9])[-1].argmax())
    assert log_likelihoods(model, [([5, 9], [likeliest])], 1)[0][1]
    with pytest.raises(DataError, match="129 tokens; the model has 128"):
        log_likelihoods(model, [([1], [5] * 129)], 1)


def test_it_is_said_how_many_questions_lost_their_beginning(run, caplog):
    model = sconce.load(run, backend=INSTALLED[-1])
    log_likelihoods(model, [([5] * 120, [6] * 9), ([5], [6] * 128), ([5] * 128, [6])], 2)  # 128 are put in, 1 is not
    assert not caplog.messages
    log_likelihoods(model, [([5] * 120, [6] * 10), ([5], [6]), ([5] * 128, [6, 7])], 2)
    assert "2 of 3 questions do not fit the model's 128 positions" in caplog.messages[0]
    ids = len(model.encode("a lamp"))
    write_continuations(model, [("a lamp", {"max_gen_toks": 128 - ids})], 1, 0)
    assert len(caplog.messages) == 1
    write_continuations(model, [("a lamp", {"max_gen_toks": 129 - ids}), ("", {"max_gen_toks": 1})], 1, 0)
    assert "1 of 2 questions do not fit" in caplog.messages[1]


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"max_gen_toks": 128}, "asks for 128 tokens, and the model has 128"),
        ({}, "asks for 256 tokens"),
        ({"max_gen_toks": 4, "num_beams": 3}, "num_beams"),
        ({"max_gen_toks": 4, "until": ["a", ""]}, "until: found an empty text"),
        ({"max_gen_toks": 4, "do_sample": True, "temperature": -1}, "temperature"),
        ({"max_gen_toks": 4, "temperature": -1}, "temperature"),
        ({"max_gen_toks": 4, "do_sample": True, "temperature": 0}, "found 0 with do_sample: true"),
    ],
)
def test_what_a_task_asks_for_in_vain_is_refused(run, asked, says):
    with pytest.raises(ConfigError, match=says):
        write_continuations(sconce.load(run, backend=INSTALLED[-1]), [("a lamp", asked)], 1, 0)


def test_a_temperature_alone_means_sampling(run):
    model = sconce.load(run, backend=INSTALLED[-1])
    options = ({}, {"temperature": 3.0}, {"temperature": 3.0, "do_sample": True}, {"temperature": 3.0, "top_k": 1})
    greedy, drawn, told, narrow = (
        write_continuations(model, [("a lamp", {"max_gen_toks": 12, **given})], 1, seed=0)[0] for given in options
    )
    assert drawn == told != greedy
    assert narrow == greedy


@pytest.mark.parametrize("backend", INSTALLED)
def test_writing_is_greedy_stops_and_keeps_the_end_of_a_long_text(run, backend):
    model = sconce.load(run, backend=backend)
    long = "a lamp on the wall, " * 60
    asked = [
        ("a lamp", {"max_gen_toks": 12}),
        (long, {"max_tokens": 12}),
        ("a lamp", {"max_gen_toks": 12, "until": "a"}),
    ]
    plain, cut, stopped = write_continuations(model, asked, 2, seed=0)
    kept = model.encode(long)[-116:]
    for text, prompt in ((plain, model.encode("a lamp")), (cut, kept)):
        ids = list(prompt)
        for _ in range(12):
            ids.append(int(model.logits(ids)[-1].argmax()))
        assert text == model.tokenizer.decode(ids[len(prompt) :])
    assert stopped == plain.split("a")[0]
