"""The contestants of `peers.py`: Sconce's training step, and those of its peers."""

import argparse
import tempfile
from collections.abc import Callable, Iterator

import numpy as np
from shapes import SHAPES, Shape, spec_of

LEARNING_RATE, BETAS, EPS, DECAY = 3e-4, (0.9, 0.95), 1e-8, 0.1
Step = Callable[[], None]


def batches(shape: Shape) -> Iterator[np.ndarray]:
    """Fresh random rows of seq + 1 tokens, the same for every contestant."""
    rng = np.random.default_rng(0)
    while True:
        yield rng.integers(0, shape.vocab, (shape.rows, shape.seq + 1)).astype(np.int32)


def sconce_step(name: str, shape: Shape, arguments: argparse.Namespace) -> Step:
    from sconce.backend import ComputeOptions, StepScalars, load_backend
    from sconce.data.batches import Batch
    from sconce.init import InitialWeights
    from sconce.optim import OptimSpec
    from sconce.training.recipe import default_loss_chunk

    spec = spec_of(shape)
    lean = name.endswith("lean")
    compute = ComputeOptions(
        precision=arguments.precision,
        compile=name.endswith("compiled"),
        recompute_every=1 if lean else 0,
        loss_chunk=arguments.loss_chunk
        or (512 if lean else default_loss_chunk(shape.rows * shape.seq, shape.vocab, arguments.device)),
    )
    optim = OptimSpec(beta1=BETAS[0], beta2=BETAS[1], eps=EPS, weight_decay=DECAY)
    hardware = "mlx" if arguments.framework == "mlx" else arguments.device
    learner = load_backend(hardware).learner(spec, optim, compute, InitialWeights(spec, 0))
    source, done = batches(shape), 0

    def step() -> None:
        nonlocal done
        tokens = next(source)
        batch = Batch(np.ascontiguousarray(tokens[:, :-1]), np.ascontiguousarray(tokens[:, 1:]))
        learner.step([batch], StepScalars(done, LEARNING_RATE, seed=0)).read()
        done += 1

    return step


def llama(shape: Shape, device: str):
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=shape.vocab,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        max_position_embeddings=shape.seq,
        tie_word_embeddings=True,
        use_cache=False,
    )
    return LlamaForCausalLM(config).to(device)


def transformers_step(name: str, shape: Shape, arguments: argparse.Namespace) -> Step:
    import torch

    torch.manual_seed(0)
    model = llama(shape, arguments.device)
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, BETAS, EPS, DECAY, fused=True)
    forward = torch.compile(model, dynamic=False) if name.endswith("compiled") else model
    source = batches(shape)

    def step() -> None:
        tokens = torch.from_numpy(next(source).astype(np.int64)).to(arguments.device)
        with torch.autocast(arguments.device, torch.bfloat16, enabled=arguments.precision == "bf16"):
            logits = forward(input_ids=tokens[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()

    return step


def gpt2(shape: Shape):
    """GPT-2's blocks in plain PyTorch: learned positions, LayerNorm, GELU, one matrix for queries, keys and values."""
    import torch
    import torch.nn.functional as F
    from torch import nn

    hidden, ffn = shape.hidden, shape.intermediate * 3 // 2  # two matrices of the MLP instead of three

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm1, self.norm2 = nn.LayerNorm(hidden, bias=False), nn.LayerNorm(hidden, bias=False)
            self.qkv, self.out = nn.Linear(hidden, 3 * hidden, bias=False), nn.Linear(hidden, hidden, bias=False)
            self.up, self.down = nn.Linear(hidden, ffn, bias=False), nn.Linear(ffn, hidden, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            rows, length, _ = x.shape
            heads = (rows, length, shape.heads, hidden // shape.heads)
            q, k, v = (part.view(heads).transpose(1, 2) for part in self.qkv(self.norm1(x)).chunk(3, dim=-1))
            seen = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.out(seen.transpose(1, 2).reshape(rows, length, hidden))
            return x + self.down(F.gelu(self.up(self.norm2(x))))

    class GPT(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens, self.places = nn.Embedding(shape.vocab, hidden), nn.Embedding(shape.seq, hidden)
            self.blocks = nn.ModuleList(Block() for _ in range(shape.layers))
            self.norm = nn.LayerNorm(hidden, bias=False)
            self.head = nn.Linear(hidden, shape.vocab, bias=False)
            self.head.weight = self.tokens.weight
            for param in self.parameters():
                if param.ndim == 2:
                    nn.init.normal_(param, std=0.02)

        def forward(self, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            x = self.tokens(inputs) + self.places.weight
            for block in self.blocks:
                x = block(x)
            return F.cross_entropy(self.head(self.norm(x)).flatten(0, 1), targets.flatten())

    return GPT()


def nanogpt_step(name: str, shape: Shape, arguments: argparse.Namespace) -> Step:
    import torch

    torch.manual_seed(0)
    model = gpt2(shape).to(arguments.device)
    matrices = [param for param in model.parameters() if param.ndim >= 2]
    vectors = [param for param in model.parameters() if param.ndim < 2]
    groups = [{"params": matrices, "weight_decay": DECAY}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, LEARNING_RATE, BETAS, EPS, fused=True)
    forward = torch.compile(model, dynamic=False) if name.endswith("compiled") else model
    source = batches(shape)

    def step() -> None:
        tokens = torch.from_numpy(next(source).astype(np.int64)).to(arguments.device)
        with torch.autocast(arguments.device, torch.bfloat16, enabled=arguments.precision == "bf16"):
            loss = forward(tokens[:, :-1], tokens[:, 1:])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()

    return step


def trainer_step(shape: Shape, arguments: argparse.Namespace) -> Step:
    """One step is `train()` of one step, its set-up apart: the Trainer's own loop runs in a thread and is let go."""
    import queue
    import threading

    import torch
    from transformers import Trainer, TrainerCallback, TrainingArguments

    go: queue.Queue[None] = queue.Queue()
    finished: queue.Queue[None] = queue.Queue()

    class Gate(TrainerCallback):
        def on_step_begin(self, *_: object, **__: object) -> None:
            go.get()

        def on_step_end(self, *_: object, **__: object) -> None:
            finished.put(None)

    class Rows(torch.utils.data.IterableDataset):
        def __iter__(self):
            for tokens in batches(shape):
                for row in torch.from_numpy(tokens[:, :-1].astype(np.int64)):
                    yield {"input_ids": row, "labels": row}

    options = TrainingArguments(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=shape.rows,
        max_steps=10**6,
        learning_rate=LEARNING_RATE,
        adam_beta1=BETAS[0],
        adam_beta2=BETAS[1],
        weight_decay=DECAY,
        bf16=arguments.precision == "bf16",
        use_cpu=arguments.device == "cpu",
        torch_compile=True,
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    trainer = Trainer(llama(shape, arguments.device), options, train_dataset=Rows(), callbacks=[Gate()])
    threading.Thread(target=trainer.train, daemon=True).start()

    def step() -> None:
        go.put(None)
        finished.get()

    return step


def mlx_lm_step(shape: Shape) -> Step:
    import mlx.core as mx
    import mlx.optimizers
    from mlx import nn
    from mlx_lm.models.llama import Model, ModelArgs

    model = Model(
        ModelArgs(
            model_type="llama",
            hidden_size=shape.hidden,
            num_hidden_layers=shape.layers,
            intermediate_size=shape.intermediate,
            num_attention_heads=shape.heads,
            rms_norm_eps=1e-5,
            vocab_size=shape.vocab,
            tie_word_embeddings=True,
        )
    )
    mx.eval(model.parameters())
    optimizer = mlx.optimizers.AdamW(LEARNING_RATE, list(BETAS), EPS, DECAY)

    def loss_of(inputs: mx.array, targets: mx.array) -> mx.array:
        return nn.losses.cross_entropy(model(inputs), targets, reduction="mean")

    state = [model.state, optimizer.state]
    differentiate = nn.value_and_grad(model, loss_of)

    def update(inputs: mx.array, targets: mx.array) -> mx.array:
        loss, grads = differentiate(inputs, targets)
        grads, _ = mlx.optimizers.clip_grad_norm(grads, 1.0)
        optimizer.update(model, grads)
        return loss

    compiled = mx.compile(update, inputs=state, outputs=state)
    source = batches(shape)

    def step() -> None:
        tokens = next(source)
        loss = compiled(mx.array(tokens[:, :-1]), mx.array(tokens[:, 1:]))
        mx.eval(loss, state)

    return step


def make(name: str, arguments: argparse.Namespace) -> Step:
    shape = shape_of(arguments)
    if name.startswith("sconce"):
        return sconce_step(name, shape, arguments)
    if name.startswith("mlx-lm"):
        return mlx_lm_step(shape)
    if name.startswith("nanoGPT"):
        return nanogpt_step(name, shape, arguments)
    return trainer_step(shape, arguments) if name.endswith("Trainer") else transformers_step(name, shape, arguments)


def shape_of(arguments: argparse.Namespace) -> Shape:
    shape = SHAPES[arguments.shape]
    return Shape(**{**vars(shape), "seq": arguments.seq or shape.seq, "rows": arguments.rows or shape.rows})
