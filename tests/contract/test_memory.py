"""The memory model against what the frameworks really hold."""

import gc
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny import INSTALLED, make_spec, mlx_only, random_batch, random_weights, torch_only

from sconce.backend import ComputeOptions, StepScalars, load_backend
from sconce.optim import OptimSpec
from sconce.planning.memory import (
    MLX_BLOCK,
    MLX_BLOCKED_FROM,
    MLX_CPU_LANES,
    MLX_RECOMPUTED_FROM,
    TORCH_BLOCK,
    Setting,
    cache_memory,
    step_memory,
)

SHAPE = {"hidden_size": 64, "intermediate_size": 176, "head_dim": 16, "num_layers": 3, "vocab_size": 500}
CASES = {
    "default": {},
    "wide": {"hidden_size": 128, "intermediate_size": 512, "head_dim": 32, "num_layers": 2},
    "many layers": {"num_layers": 6},
    "gqa, qk-norm": {"num_kv_heads": 1, "qk_norm": True},
    "plain, layernorm": {"mlp": "plain", "norm": "layernorm", "activation": "gelu"},
    "large vocabulary": {"vocab_size": 3000},
    "bf16": {"precision": "bf16"},
    "recompute": {"recompute_every": 1, "num_layers": 6},
    "recompute every second": {"recompute_every": 2, "num_layers": 6},
    "bf16, recompute": {"precision": "bf16", "recompute_every": 1, "num_layers": 6},
    "chunked": {"vocab_size": 3000, "loss_chunk": 64},
    "chunked, bf16": {"vocab_size": 3000, "loss_chunk": 64, "precision": "bf16"},
    "untied": {"vocab_size": 3000, "tie_word_embeddings": False},
    "reference": {"attention": "reference"},
    "dropout": {"residual_dropout": 0.1, "attn_dropout": 0.1},
    "window": {"sliding_window": 40},
    "packed": {"packed": True},
    "blocks": {"seq_len": 512, "num_layers": 2},
    "blocks, recomputed": {"seq_len": 1024, "num_layers": 2},
    "blocks, packed": {"seq_len": 512, "num_layers": 2, "packed": True},
    "long, packed": {"seq_len": 1200, "num_layers": 2, "packed": True},
    "long, window": {"seq_len": 1200, "num_layers": 2, "sliding_window": 300},
}
FEW_TOKENS = {"hidden_size": 128, "intermediate_size": 512, "head_dim": 32, "num_layers": 16, "seq_len": 16}
SELDOM = ("many layers", "plain, layernorm", "reference", "window", "wide", "blocks, packed", "long, packed")
SLOW = pytest.mark.slow
PEAK_CASES = [pytest.param(case, marks=[SLOW] if case in SELDOM else []) for case in CASES]
OPTIONS = ("precision", "recompute_every", "loss_chunk", "attention")
ROWS, SEQ = 4, 128


def mlx_lanes():
    if "mlx" not in INSTALLED:
        return MLX_CPU_LANES
    from sconce_mlx.lanes import lanes

    return len(lanes())


def setting_of(case, framework, rows=ROWS, **changes):
    shape = {**SHAPE, **case, **changes}
    optim = shape.pop("optim", OptimSpec())
    packed, seq = shape.pop("packed", False), shape.pop("seq_len", SEQ)
    options = ComputeOptions(**{key: shape.pop(key) for key in OPTIONS if key in shape})
    return Setting(
        spec=make_spec(max_position_embeddings=seq, **shape),
        optim=optim,
        options=options,
        framework=framework,
        compiled=False,
        batch_size=rows,
        micro_batch_size=rows,
        seq_len=seq,
        packed=packed,
        lanes=mlx_lanes() if framework == "mlx" else 1,
    )


def beside_the_state(setting):
    """The estimated peak of a step, without weights and slots, which measurement leaves out as well."""
    memory = step_memory(setting)
    return memory.peak - memory.weights - memory.optimizer


def learner_and_batch(setting):
    backend = load_backend("cpu" if setting.framework == "torch" else "mlx")
    learner = backend.learner(setting.spec, setting.optim, setting.options, random_weights(setting.spec))
    batch = random_batch(setting.spec, rows=setting.micro_batch_size, seq=setting.seq_len)
    if setting.packed:
        batch = batch._replace(segments=np.zeros_like(batch.inputs))
    return learner, batch


@pytest.fixture(autouse=True)
def instructions_for_16_bits(monkeypatch):
    """The model is of hardware that multiplies 16 bits; elsewhere PyTorch's products are made of float32 copies."""
    if "cpu" in INSTALLED:
        from sconce_torch import products

        monkeypatch.setattr(products, "CPU_MULTIPLIES", dict.fromkeys(products.CPU_MULTIPLIES, True))


@torch_only
@pytest.mark.parametrize("case", CASES)
def test_torch_keeps_what_the_model_says(case):
    """Bytes that autograd saves in the forward pass, each storage once, without the weights themselves."""
    import torch

    setting = setting_of(CASES[case], "torch")
    learner, batch = learner_and_batch(setting)
    own = {tensor.untyped_storage().data_ptr() for tensor in (*learner.params.values(), *learner.model.buffers())}
    saved = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = (storage.nbytes(), tensor)  # held, so that no address is used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        learner._summed_nats(*learner._put_batch(batch), learner._dropout_keys(StepScalars(0, 1e-3, seed=0), 0, ROWS))
    memory = step_memory(setting)
    spec, act = setting.spec, 4 if setting.options.precision == "fp32" else 2
    # Of the logits' part, the two gradients wait for the backward pass.
    waiting = 4 * spec.vocab_size * spec.hidden_size + act * setting.tokens * spec.hidden_size
    casts = 0 if setting.options.recompute_every else memory.casts  # a recomputed block casts in its backward pass
    expected = memory.activations + casts + waiting
    assert sum(size for size, _ in saved.values()) == pytest.approx(expected, rel=0.1)


def torch_peak(setting, tmp_path):
    """The most that PyTorch's allocator held during a second step, in bytes above what was there before it."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    learner, batch = learner_and_batch(setting)
    learner.step([batch], StepScalars(0, 1e-3, seed=0)).read()
    for param in learner.params.values():
        param.grad = None
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        torch.empty(1)
        learner.step([batch], StepScalars(1, 1e-3, seed=0)).read()
    profiler.export_chrome_trace(str(tmp_path / "trace.json"))
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    held = [event["args"]["Total Allocated"] for event in events if event.get("name") == "[memory]"]
    return max(held) - held[0]


@torch_only
@pytest.mark.parametrize("case", PEAK_CASES)
def test_torch_peak_is_near_the_estimate(case, tmp_path):
    setting = setting_of(CASES[case], "torch")
    assert beside_the_state(setting) == pytest.approx(torch_peak(setting, tmp_path), rel=0.15)


@torch_only
def test_the_model_knows_how_torch_cuts_its_work():
    """A number of the backend that the core, which imports none, has to repeat."""
    from sconce_torch import attention

    assert TORCH_BLOCK == attention.BLOCK


@mlx_only
def test_the_model_knows_how_mlx_cuts_its_work():
    """Numbers of the backend that the core, which imports none, has to repeat."""
    from sconce_mlx import attention

    assert MLX_BLOCKED_FROM == attention.BLOCKED_FROM
    assert MLX_RECOMPUTED_FROM == attention.RECOMPUTED_FROM
    assert MLX_BLOCK == attention.BLOCK
    device = load_backend("mlx").device()
    assert mlx_lanes() == (MLX_CPU_LANES if device.kind == "cpu" else 1)


def mlx_peak(setting, micro_batches):
    """The most that MLX's arrays took during a first step, in bytes above what was there before it.

    MLX is kept from running ahead of itself: on a CPU it allocates what it has only queued.
    """
    import mlx.core as mx

    learner, batch = learner_and_batch(setting)
    mx.eval(learner.params, learner.slots)
    gc.collect()
    limit = mx.set_memory_limit(1)
    try:
        mx.synchronize()
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        learner.step([batch] * micro_batches, StepScalars(0, 1e-3, seed=0)).read()
        mx.synchronize()
        return mx.get_peak_memory() - before
    finally:
        mx.set_memory_limit(limit)


@mlx_only
@pytest.mark.parametrize("case", PEAK_CASES)
def test_mlx_peak_is_near_the_estimate(case):
    setting = setting_of(CASES[case], "mlx")
    assert beside_the_state(setting) == pytest.approx(mlx_peak(setting, 1), rel=0.15)


@mlx_only
@pytest.mark.parametrize("algorithm", ["adam_w", "lion", *(pytest.param(x, marks=SLOW) for x in ("sgd", "muon"))])
@pytest.mark.parametrize(
    ("rows", "compiled", "micro_batches"),
    [(ROWS, False, 1), (ROWS, False, 2), (1, False, 1), (1, True, 1), (1, True, 2)],
)
def test_mlx_peak_of_large_weights_is_near_the_estimate(algorithm, rows, compiled, micro_batches):
    """Where gradients and the update are most of it: no tree of them more than is counted."""
    setting = setting_of(FEW_TOKENS, "mlx", rows, optim=OptimSpec(algorithm=algorithm))
    options = ComputeOptions(compile=compiled)
    setting = replace(setting, compiled=compiled, options=options, batch_size=micro_batches * rows)
    assert beside_the_state(setting) == pytest.approx(mlx_peak(setting, micro_batches), rel=0.15)


DEPTH_FIRST = {
    "default": {},
    "bf16": {"precision": "bf16"},
    "recompute": {"recompute_every": 1, "num_layers": 6},
    "few tokens": FEW_TOKENS,
    "two layers, few tokens": {**FEW_TOKENS, "num_layers": 2},
    "large vocabulary, few tokens": {"vocab_size": 20000, "seq_len": 16},
    "untied, one layer": {"vocab_size": 6000, "seq_len": 16, "tie_word_embeddings": False, "num_layers": 1},
    "chunked, bf16": {"vocab_size": 8000, "loss_chunk": 64, "precision": "bf16"},
    "few tokens, lion": {**FEW_TOKENS, "optim": OptimSpec(algorithm="lion")},
}


def depth_first_setting(case, micro_batches):
    setting = replace(setting_of(DEPTH_FIRST[case], "mlx", rows=1), lanes=1, compiled=True, batch_size=micro_batches)
    return replace(setting, options=replace(setting.options, compile=True))


def print_depth_first_peaks(micro_batches):
    """In a process of its own: MLX reads the order when it starts."""
    import sconce_mlx.learner

    lanes = sconce_mlx.learner.lanes
    sconce_mlx.learner.lanes = lambda: lanes()[:1]
    settings = {case: depth_first_setting(case, micro_batches) for case in DEPTH_FIRST}
    print(json.dumps({case: mlx_peak(setting, micro_batches) for case, setting in settings.items()}))


@mlx_only
@pytest.mark.parametrize("micro_batches", [1, 2])
def test_mlx_peak_depth_first_is_near_the_estimate(micro_batches):
    """As a Mac computes: one lane, compiled, and in the order that is MLX's own."""
    here = Path(__file__).parent
    path = [str(here), str(here.parent)]
    code = f"import sys; sys.path[:0] = {path}; import test_memory as t; t.print_depth_first_peaks({micro_batches})"
    environment = os.environ | {"MLX_BFS_MAX_WIDTH": "20"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True, check=True)
    estimates = {case: beside_the_state(depth_first_setting(case, micro_batches)) for case in DEPTH_FIRST}
    assert estimates == pytest.approx(json.loads(done.stdout), rel=0.15)


def test_state_and_cache_are_what_is_allocated(backend):
    framework = "mlx" if backend.name == "mlx" else "torch"
    setting = setting_of({"num_kv_heads": 2, "precision": "bf16"}, framework)
    learner, _ = learner_and_batch(setting)
    memory = step_memory(setting)
    assert memory.weights + memory.optimizer == sum(array.nbytes for _, array in learner.tensors())
    decoder = learner.decoder(rows=3, max_len=50)
    decoder.feed(np.ones((3, 50), np.int32))
    arrays = [part for layer in decoder.cache.layers for part in (layer if isinstance(layer, list) else [layer])]
    assert cache_memory(setting.spec, setting.options, 3, 50) == sum(array.nbytes for array in arrays)


@pytest.mark.parametrize("framework", ["torch", "mlx"])
def test_more_rows_and_less_recomputation_need_more(framework):
    peaks = [step_memory(setting_of({}, framework, rows)).peak for rows in (1, 2, 4, 8)]
    assert peaks == sorted(peaks)
    cheap, dear = ({"num_layers": 8, "recompute_every": every} for every in (1, 0))
    assert step_memory(setting_of(cheap, framework)).peak < step_memory(setting_of(dear, framework)).peak / 2
    sizes = np.diff(peaks)
    assert sizes[1] == pytest.approx(2 * sizes[0], rel=0.3), "memory is linear in the rows, beside what is constant"
