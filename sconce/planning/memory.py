"""How much memory one optimizer step needs, in closed form, from what each backend keeps for the gradient.

PyTorch's sizes follow its autograd graph, tensor by tensor; MLX's were fitted to its peak on a CPU, whose attention
is the same unfused one as Metal's in training. Tests hold both against measurements.
"""

from dataclasses import dataclass

from sconce.backend import ComputeOptions, state_names
from sconce.optim import OptimSpec
from sconce.spec import ModelSpec

BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
MLX_BLOCKED_FROM, MLX_RECOMPUTED_FROM, MLX_BLOCK = 256, 1024, 128  # tokens: of sconce_mlx.attention
MLX_CPU_LANES = 2  # of sconce_mlx.lanes
TORCH_BLOCK = 512  # tokens: of sconce_torch.attention


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """All that memory depends on.

    `compiled` fuses element-wise work, so that PyTorch keeps less of it. `lanes` are the parts of a micro-batch that
    are computed at the same time, each with gradients of its own: `sconce_mlx.lanes`. With one lane MLX computes depth
    first, and so lets go of most arrays early.
    """

    spec: ModelSpec
    optim: OptimSpec
    options: ComputeOptions
    framework: str
    compiled: bool
    batch_size: int
    micro_batch_size: int
    seq_len: int
    packed: bool = False  # rows of whole documents that do not see each other
    lanes: int = 1

    @property
    def tokens(self) -> int:
        """Tokens on the device at once."""
        return self.micro_batch_size * self.seq_len

    @property
    def accumulates(self) -> bool:
        """Whether a step has more than one micro-batch."""
        return self.micro_batch_size < self.batch_size


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bytes by part.

    `casts` are weights in the activations' precision; `activations` all that waits for the backward pass; `logits`
    what making the loss needs; `working` what the backward pass through one block needs. `carried` are the gradients
    that are there when it starts: of earlier micro-batches, and of the head. `remaining` are the activations that are
    still there when it ends and all gradients are. `update` is what the update holds, gradients included.
    """

    weights: int
    optimizer: int
    gradients: int
    casts: int
    activations: int
    logits: int
    working: int
    carried: int
    remaining: int
    update: int

    @property
    def peak(self) -> int:
        """The most that is held at one time: while the loss is made, at either end of the way back, or afterwards."""
        loss = self.activations + self.carried + self.logits
        first = self.activations + self.carried + self.working
        last = self.remaining + self.gradients + self.working
        return self.weights + self.optimizer + max(self.casts + max(loss, first, last), self.update)


def step_memory(setting: Setting) -> Memory:
    """The memory of one optimizer step."""
    spec, tokens = setting.spec, setting.tokens
    weights = 4 * spec.num_params
    state = 4 * sum(_size(shape) for _, shape in state_names(spec, setting.optim))
    head_gradients = _lanes(setting) * _head_bytes(spec)
    sums = weights if setting.accumulates else 0
    kept, working = _block_bytes(setting)
    recomputed = _recomputed_blocks(setting)
    inputs = recomputed * spec.hidden_size * BYTES[setting.options.precision]
    activations = (spec.num_layers - recomputed) * kept + inputs + _end_bytes(setting)
    remaining = activations // spec.num_layers  # what a block kept is free when its gradients are there
    return Memory(
        weights=weights,
        optimizer=state - weights,
        gradients=_gradient_bytes(setting),
        casts=_cast_bytes(setting),
        activations=tokens * activations + _mask_bytes(setting),
        logits=_loss_bytes(setting),
        working=tokens * (working + _recompute_bytes(setting, kept, working)),
        carried=sums + head_gradients,
        remaining=tokens * remaining + _mask_bytes(setting),
        update=_update_bytes(setting),
    )


def cache_memory(spec: ModelSpec, options: ComputeOptions, rows: int, max_len: int) -> int:
    """Bytes of the key and value cache that generation allocates; PyTorch twice as many where it emulates 16 bits."""
    per_token = 2 * spec.num_layers * spec.num_kv_heads * spec.head_dim * BYTES[options.precision]
    return rows * max_len * per_token


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for length in shape:
        size *= length
    return size


def _lanes(setting: Setting) -> int:
    return min(setting.lanes, setting.micro_batch_size)


def _head_bytes(spec: ModelSpec) -> int:
    """Float32 of the head, and as much of the embedding."""
    return 4 * spec.vocab_size * spec.hidden_size


def _tables_bytes(spec: ModelSpec) -> int:
    """Float32 of the embedding and, where it is another, of the head."""
    return _head_bytes(spec) * (1 if spec.tie_word_embeddings else 2)


def _two_blocks_bytes(spec: ModelSpec) -> int:
    """Float32 of the weights of two blocks: depth first, MLX has about as many under way."""
    return min(2, spec.num_layers) * (4 * spec.num_params - _tables_bytes(spec)) // spec.num_layers


def _gradient_bytes(setting: Setting) -> int:
    """All gradients at the end of the way back, with the sums of earlier micro-batches.

    PyTorch adds each to its sum as soon as it is there; MLX, depth first, almost so, and else one tree of them to
    another. And in MLX a tied embedding has two gradients, of which the head's waits for the other.
    """
    spec, weights = setting.spec, 4 * setting.spec.num_params
    if setting.framework != "mlx":
        return weights
    own = weights + (_head_bytes(spec) if spec.tie_word_embeddings else 0)
    if setting.lanes > 1:
        return _lanes(setting) * own + (weights if setting.accumulates else 0)
    return own + (_head_bytes(spec) + _two_blocks_bytes(spec) if setting.accumulates else 0)


def _update_bytes(setting: Setting) -> int:
    """What an update holds at once, gradients included.

    PyTorch overwrites, and so does MLX, depth first, but for parameters under way; else it holds scaled gradients and
    parts of a rule for many parameters at once.
    """
    spec, rule, weights = setting.spec, setting.optim.algorithm, 4 * setting.spec.num_params
    if setting.framework != "mlx":
        return weights
    copies = 1 if setting.compiled else 2
    under_way = copies * _tables_bytes(spec) + _two_blocks_bytes(spec)
    if setting.lanes == 1:
        return weights + min(under_way, copies * weights)
    if setting.compiled:
        return 2 * weights if rule in ("lion", "muon") else weights + min(under_way, weights)
    return 2 * weights + min(under_way, weights) if rule in ("sgd", "muon") else 3 * weights


def _recomputed_blocks(setting: Setting) -> int:
    every = setting.options.recompute_every
    return -(-setting.spec.num_layers // every) if every else 0


def _recompute_bytes(setting: Setting, kept: int, working: int) -> int:
    """Bytes a token of a block that is computed again, beyond `working`: its backward pass frees what it needs.

    MLX frees it late. But if the last block was not recomputed, what that kept has made room.
    """
    every, last = setting.options.recompute_every, setting.spec.num_layers - 1
    if not every:
        return 0
    if setting.framework == "mlx":
        return kept if last % every == 0 else 0
    return max(kept - working, 0)


def _in_full(setting: Setting) -> bool:
    return setting.options.attention == "reference" or setting.spec.attn_dropout > 0


def _block_bytes(setting: Setting) -> tuple[int, int]:
    """Bytes a token that one block keeps for its gradient, and that its backward pass needs besides."""
    attention, attention_working = _attention_bytes(setting)
    spec, act = setting.spec, BYTES[setting.options.precision]
    hidden, ffn, gated, mlx = spec.hidden_size, spec.intermediate_size, spec.mlp == "gated", setting.framework == "mlx"
    mlp = ffn * act * _mlp_arrays(setting)
    norms = 2 * (_norm_bytes(setting, hidden) + (0 if mlx else hidden * act))  # MLX makes a norm's output again
    dropout = 2 * hidden if spec.residual_dropout > 0 else 0  # which elements were kept, a byte each
    kept = norms + attention + mlp + dropout
    # By the time that attention is reached, what the MLP kept is free.
    if mlx:
        return kept, 2 * hidden * act + max(ffn * act * (4 if gated else 3), attention_working - mlp)
    return kept, max(2 * ffn * act, 2 * hidden * 4, attention_working - mlp)


def _mlp_arrays(setting: Setting) -> int:
    """Arrays of the MLP's width that its gradient needs."""
    if setting.framework == "mlx":  # which computes the activation again
        return 1 if setting.spec.mlp == "plain" else 2
    if setting.spec.mlp == "plain":
        return 2
    return 3 if setting.compiled else 4


def _norm_bytes(setting: Setting, size: int) -> int:
    """What a norm over `size` elements keeps; its output belongs to who uses it."""
    act = BYTES[setting.options.precision]
    if setting.framework == "mlx" or setting.compiled:
        return size * act + 4
    return 8 * size + 4 if setting.spec.norm == "rmsnorm" else 4 * size + 8


def _attention_bytes(setting: Setting) -> tuple[int, int]:
    """Bytes a token that attention keeps, without its norm's output, and that its backward pass needs besides."""
    spec, act, mlx = setting.spec, BYTES[setting.options.precision], setting.framework == "mlx"
    q_size, kv_size = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
    kept = act * 2 * (q_size + kv_size) + 4 * spec.num_heads
    if spec.qk_norm:
        each = 1 if mlx or setting.compiled else 2
        width = act if mlx or setting.compiled else 4
        kept += each * width * (q_size + kv_size) + 4 * (spec.num_heads + spec.num_kv_heads)
    row = spec.num_heads * setting.seq_len  # probabilities of one token
    if _in_full(setting):
        groups = 2 * (q_size - kv_size) * act if kv_size < q_size else 0
        dropped = row * (1 + act) if spec.attn_dropout > 0 else (row * act if act < 4 else 0)
        # out_BNTD comes head by head, and is laid out anew for the output projection; MLX does that again.
        return kept + groups + (0 if mlx else q_size * act) + 4 * row + dropped, (2 if mlx else 3) * 4 * row
    if not mlx:
        return kept, 0
    if _in_blocks(setting):
        pairs = _pairs(setting, MLX_BLOCK)
        if setting.seq_len < MLX_RECOMPUTED_FROM:
            kept += act * spec.num_heads * pairs // setting.seq_len
        widest = min(setting.seq_len, (spec.sliding_window or setting.seq_len) + MLX_BLOCK)
        return kept, 2 * act * spec.num_heads * MLX_BLOCK * widest // setting.seq_len
    return kept + act * row, act * row


def _masked(setting: Setting) -> bool:
    """Whether a token does not see simply all before it."""
    return setting.packed or setting.spec.sliding_window is not None


def _mask_bytes(setting: Setting) -> int:
    """The mask of documents, of a window, and of attention in full: True or False in MLX, a number in PyTorch.

    One for all rows, unless they hold documents; MLX's blocks have each their own, which is small, and PyTorch's none
    for the keys that no query of theirs sees.
    """
    full, mlx = _in_full(setting), setting.framework == "mlx"
    if not (_masked(setting) or full) or (mlx and _in_blocks(setting)):
        return 0
    rows, length = setting.micro_batch_size if setting.packed else 1, setting.seq_len
    if mlx:
        return rows * length**2
    return rows * _pairs(setting, length if full else TORCH_BLOCK) * BYTES[setting.options.precision]


def _pairs(setting: Setting, block: int) -> int:
    """Queries times keys, summed over the blocks of a row; the keys of a block are those that one of it may see."""
    length, window = setting.seq_len, setting.spec.sliding_window or setting.seq_len
    blocks = [(start, min(start + block, length)) for start in range(0, length, block)]
    return sum((stop - start) * (stop - max(0, start - window + 1)) for start, stop in blocks)


def _in_blocks(setting: Setting) -> bool:
    """Whether MLX's attention goes by blocks of queries."""
    return not _in_full(setting) and setting.options.attention == "auto" and setting.seq_len >= MLX_BLOCKED_FROM


def _end_bytes(setting: Setting) -> int:
    """Bytes a token of the ids at one end, and of the last norm at the other: in MLX with its output.

    PyTorch's loss needs its input no longer once it has made its gradient.
    """
    spec = setting.spec
    output = spec.hidden_size * BYTES[setting.options.precision] if setting.framework == "mlx" else 0
    return 16 + _norm_bytes(setting, spec.hidden_size) + output


def _cast_bytes(setting: Setting) -> int:
    if setting.options.precision == "fp32":
        return 0
    spec = setting.spec
    matrices = sum(param.size for param in spec.params() if param.group == "matrix")
    recomputed = _recomputed_blocks(setting)
    if setting.framework == "mlx":  # which casts again: a block's at a time, or the head's
        return 2 * max(matrices // spec.num_layers, spec.vocab_size * spec.hidden_size)
    held = spec.num_layers - recomputed + min(recomputed, 1)  # one recomputed block at a time has its own
    return 2 * (matrices * held // spec.num_layers)


def _loss_bytes(setting: Setting) -> int:
    """Logits, probabilities and their gradient, of one chunk at a time, and what the chunks leave behind."""
    spec, act = setting.spec, BYTES[setting.options.precision]
    table = spec.vocab_size * spec.hidden_size
    chunk = min(setting.options.loss_chunk or setting.tokens, setting.tokens)
    if setting.framework == "mlx":
        # Where memory is short and MLX waits, the gradient takes the place of the float32 logits.
        cast = 0 if act == 4 or setting.compiled else act
        # A chunk's part of the head's gradient, beside the sum.
        part = table * (4 + cast) * _lanes(setting) if chunk < setting.tokens else 0
        return chunk * spec.vocab_size * (4 + cast) + part
    # Compiled, 16 bits take 6 where a processor emulates them; a GPU needs 4.
    a_token = (4 if act == 4 else 6) if not setting.compiled else 2 * max(act, 3)
    cast = table * act if act < 4 else 0
    return chunk * spec.vocab_size * a_token + (4 + act) * table + cast + 2 * setting.tokens * spec.hidden_size * act
