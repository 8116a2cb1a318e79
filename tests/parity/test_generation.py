"""Generation against transformers, and one backend against the other."""

import numpy as np
import pytest
from tiny import INSTALLED, make_spec, random_weights

from sconce.backend import ComputeOptions, load_backend
from sconce.generation.engine import Engine, Request
from sconce.generation.sampling import Sampling, sample_token
from sconce.interop.hf import hf_config

PROMPTS = 20
NEW = 12
VARIATIONS = {
    "llama": {"num_kv_heads": 2, "max_position_embeddings": 128},
    "qwen3-window": {"qk_norm": True, "sliding_window": 7, "max_position_embeddings": 128},
}


def prompts(spec):
    rng = np.random.default_rng(5)
    return [rng.integers(3, spec.vocab_size, rng.integers(1, 30)).tolist() for _ in range(PROMPTS)]


def ours(name, spec, rows, sampling, asked):
    model = load_backend(name).language_model(spec, ComputeOptions(), random_weights(spec))
    engine = Engine(model, rows=rows, max_len=spec.max_position_embeddings)
    tickets = [engine.add(Request(prompt=p, max_tokens=NEW, sampling=sampling, seed=i)) for i, p in enumerate(asked)]
    drawn = {ticket: [] for ticket in tickets}
    while not engine.idle:
        for event in engine.step():
            drawn[event.ticket].append(event.token)
    return [drawn[ticket] for ticket in tickets]


def theirs(spec, asked, drawn):
    """The likeliest token after each prompt and each beginning of what was drawn after it: greedy if it is the same."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers", reason="transformers is the other side")
    config = transformers.AutoConfig.for_model(**hf_config(spec, bos_id=0, eos_id=1, pad_id=2))
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    model.load_state_dict({name: torch.from_numpy(array) for name, array in random_weights(spec).items()}, strict=False)
    model.tie_weights()
    with torch.no_grad():
        return [
            model(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1].argmax(-1).tolist()
            for prompt, tokens in zip(asked, drawn, strict=True)
        ]


@pytest.mark.parametrize("variation", VARIATIONS)
def test_greedy_tokens_are_those_of_transformers_alone_and_in_a_batch(variation):
    spec = make_spec(**VARIATIONS[variation])
    asked = prompts(spec)
    greedy = Sampling(temperature=0)
    drawn = {(name, rows): ours(name, spec, rows, greedy, asked) for name in INSTALLED for rows in (1, 8)}
    first = drawn[INSTALLED[0], 1]
    assert [len(tokens) for tokens in first] == [NEW] * PROMPTS
    assert first == theirs(spec, asked, first)
    for how, tokens in drawn.items():
        assert tokens == first, how


@pytest.mark.skipif(len(INSTALLED) < 2, reason="needs both mlx and torch: pip install 'mlx[cpu]' torch")
@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=1.0, top_k=0),
        Sampling(temperature=0.7, top_k=20, top_p=0.9, min_p=0.02, repetition_penalty=1.3),
    ],
)
def test_both_backends_draw_the_same_tokens_in_any_batch(sampling):
    spec = make_spec(**VARIATIONS["llama"])
    asked = prompts(spec)
    results = [ours(name, spec, rows, sampling, asked) for name in INSTALLED for rows in (1, 8)]
    assert all(result == results[0] for result in results)
    assert len({tuple(tokens) for tokens in results[0]}) == PROMPTS, "different seeds draw different tokens"


def test_repetition_penalty_is_that_of_transformers():
    torch = pytest.importorskip("torch", reason="the processor under comparison runs in torch")
    transformers = pytest.importorskip("transformers")
    logits = np.random.default_rng(0).standard_normal(40).astype(np.float32)
    used = [3, 7, 7, 30]
    theirs = transformers.RepetitionPenaltyLogitsProcessor(1.7)(torch.tensor([used]), torch.tensor(logits[None]))
    seen = np.zeros(40, bool)
    seen[used] = True
    sampling = Sampling(temperature=1.0, top_k=0, repetition_penalty=1.7)
    rng = np.random.default_rng(1)
    drawn = np.bincount([sample_token(logits, sampling, rng, seen) for _ in range(20000)], minlength=40) / 20000
    np.testing.assert_allclose(drawn, theirs.softmax(-1)[0], atol=0.014)
