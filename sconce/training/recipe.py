"""What a config asks of the schedule, the optimizer and the device."""

from bisect import bisect_left

from sconce.attention import wanted_attention
from sconce.backend import AttentionKind, ComputeOptions
from sconce.config import (
    RunConfig,
    beta2,
    micro_batch_size,
    momentum,
    precision,
    ramp,
    recompute_every,
)
from sconce.data.order import Order, block_counts, make_order
from sconce.errors import ConfigError
from sconce.optim import OptimSpec
from sconce.planning.choice import LEAST_CHUNK
from sconce.schedule import Schedule
from sconce.spec import ModelSpec

CHUNKS = 4  # of a micro-batch: beside its activations a quarter of the logits is little
CHUNK_BYTES = 128 * 2**20  # of float32 logits
# On CUDA more: every chunk reads and writes the head's whole gradient. By an H100's 600 TFLOP/s and 3.3 TB/s that takes
# a tenth of the time of 4,096 tokens' products, and three quarters of 512 tokens'.
CUDA_BYTES = 2**30


def make_schedule(config: RunConfig, order: Order) -> Schedule:
    """The learning-rate schedule, its horizon in steps. Raises ConfigError for what does not fit into that."""
    scheduler = config.scheduler
    total = scheduler.total_steps
    if total is None:
        assert scheduler.total_epochs is not None, "config asks for one of the two"
        total = _steps_of_epochs(config, order, scheduler.total_epochs)
    if scheduler.warmup_steps > total:
        raise ConfigError(f"scheduler.warmup_steps: found {scheduler.warmup_steps}, and the run has {total} steps")
    room = total - scheduler.warmup_steps
    decay_steps = scheduler.decay_steps or max(1, min(total // 5, room))
    if scheduler.decay_steps is not None and decay_steps > room:
        raise ConfigError(f"scheduler.decay_steps: found {decay_steps}, expected at most the {room} after the warm-up")
    return Schedule(
        strategy=scheduler.strategy,
        peak_lr=config.optimizer.learning_rate,
        total_steps=total,
        warmup_steps=scheduler.warmup_steps,
        min_lr=scheduler.min_lr,
        power=scheduler.power,
        decay_steps=decay_steps,
    )


def _steps_of_epochs(config: RunConfig, order: Order, epochs: float) -> int:
    """The most steps within so many passes over one source; of several, the fewest that pass over each so often."""
    if not config.data.weights:
        return max(1, order.ramp.steps(int(epochs * order.num_rows) * order.ramp.longest))
    drawn = [source for source, weights in enumerate(zip(*config.data.weights, strict=True)) if any(weights)]

    def fewest(step: int) -> float:
        passes = order.source_epochs(step)
        return min(passes[source] for source in drawn)

    last = max(order.ramp.stages[-1].first_step, *config.data.weight_steps, 1)
    ended = [source for source in drawn if not config.data.weights[-1][source]]
    for source in ended:
        if (passes := order.source_epochs(last)[source]) < epochs:
            raise ConfigError(
                f"scheduler.total_epochs: found {epochs:g}, and {config.data.train_shards[source].name} is passed over "
                f"{passes:.2f} times before data.weights leaves it out for good: set scheduler.total_steps"
            )
    while fewest(last) < epochs:
        last *= 2
    return bisect_left(range(last), epochs, lo=1, key=fewest)


def train_order(config: RunConfig, sizes: tuple[int, ...]) -> Order:
    """Which rows each step of a config trains on; `sizes` are the long rows of each source."""
    steps = (0, *config.data.weight_steps)
    weights = [(step, block_counts(each)) for step, each in zip(steps, config.data.weights, strict=False)]
    return make_order(sizes, weights, ramp(config), config.runtime.seed)


def make_optim(config: RunConfig) -> OptimSpec:
    """The update rule that a config describes."""
    optimizer = config.optimizer
    return OptimSpec(
        algorithm=optimizer.algorithm,
        beta1=optimizer.beta1,
        beta2=beta2(config),
        momentum=momentum(config),
        eps=optimizer.epsilon,
        weight_decay=optimizer.weight_decay,
        max_grad_norm=optimizer.max_grad_norm,
    )


def make_compute(config: RunConfig, spec: ModelSpec, kind: str) -> ComputeOptions:
    """How a device of that kind (`DeviceInfo`) computes.

    Raises ConfigError for an ATTN_* variable that would do nothing, or contradicts the config.
    """
    return ComputeOptions(
        precision=precision(config),
        compile=config.runtime.compile,
        attention=attention_kind(config),
        recompute_every=recompute_every(config),
        loss_chunk=_loss_chunk(config, spec, kind),
    )


def attention_kind(config: RunConfig) -> AttentionKind:
    """The config's choice; where it leaves it open, ATTN_BACKEND's, which a training.toml therefore never holds.

    Raises ConfigError where the two contradict each other, and for an ATTN_* variable that would do nothing.
    """
    wanted, configured = wanted_attention(), config.runtime.attention_backend
    if "auto" not in (wanted, configured) and wanted != configured:
        raise ConfigError(
            f"ATTN_BACKEND: found {wanted}, and runtime.attention_backend is {configured}: unset it, or leave that key "
            "at auto"
        )
    return wanted if configured == "auto" else configured


def _loss_chunk(config: RunConfig, spec: ModelSpec, kind: str) -> int | None:
    asked = config.runtime.loss_chunk
    if asked is not None:
        return asked or None
    return default_loss_chunk(micro_batch_size(config) * ramp(config).longest, spec.vocab_size, kind)


def default_loss_chunk(tokens: int, vocab_size: int, kind: str) -> int | None:
    """How many tokens' logits a micro-batch of `tokens` makes at once on a device of that kind; None for all.

    As many as the bounds allow; or fewer, but no less than half, that leave no shorter last chunk: that would be
    compiled anew.
    """
    cuda = kind == "cuda"
    most = (CUDA_BYTES if cuda else CHUNK_BYTES) // (4 * vocab_size)
    most = max(LEAST_CHUNK, min(most, tokens if cuda else -(-tokens // CHUNKS)))
    if most >= tokens:
        return None
    sizes = range(most, max(most // 2, LEAST_CHUNK - 1), -1)
    return next((size for size in sizes if tokens % size == 0), most)
