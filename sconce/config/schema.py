"""Every key a config may have: its type, its default, its check and what it means."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, field_serializer

from sconce.hub_address import spelled

Weight = Annotated[float, Field(ge=0)]
Document = Literal["passage", "line", "blank-line", "file"]
Strategy = Literal["constant", "linear_warmup", "cosine", "cosine_with_warmup", "polynomial", "wsd"]


class Section(BaseModel):
    """A table of the config: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class RopeScalingConfig(Section):
    """The rotary embedding over more positions than a model was first trained on: see docs/rotary.md."""

    rope_type: Literal["default", "linear", "llama3", "yarn"] = Field(
        default="default", description="default does not scale."
    )
    factor: float | None = Field(
        default=None, ge=1, description="How far frequencies are slowed down, at most. Required unless default."
    )
    original_max_position_embeddings: int | None = Field(
        default=None, ge=1, description="Positions of the first training. Required for llama3 and yarn."
    )
    low_freq_factor: float | None = Field(
        default=None, gt=0, description="llama3: pairs that turn less often in those are slowed fully. Default: 1."
    )
    high_freq_factor: float | None = Field(
        default=None, gt=0, description="llama3: pairs that turn more often are kept. Default: 4."
    )
    beta_fast: float | None = Field(
        default=None, gt=0, description="yarn: pairs that turn more often are kept. Default: 32."
    )
    beta_slow: float | None = Field(
        default=None, gt=0, description="yarn: pairs that turn less often are slowed fully. Default: 1."
    )
    attention_factor: float | None = Field(
        default=None, gt=0, description="yarn: what multiplies rotated queries and keys. Default: 0.1 ln(factor) + 1."
    )


class ModelConfig(Section):
    """The architecture: Llama's by default, Qwen3's with `qk_norm`."""

    hidden_size: int = Field(default=128, ge=1, description="Width of the residual stream.")
    intermediate_size: int | None = Field(
        default=None,
        ge=1,
        description="Width of the MLP. Default: 8/3 of hidden_size rounded up to a multiple of 32 when gated, "
        "4 times hidden_size when plain.",
    )
    num_attention_heads: int = Field(default=4, ge=1, description="Query heads.")
    num_key_value_heads: int | None = Field(
        default=None,
        ge=1,
        description="Key and value heads; fewer than query heads is GQA. Default: num_attention_heads.",
    )
    num_layers: int = Field(default=4, ge=1, description="Transformer blocks.")
    head_dim: int | None = Field(
        default=None,
        ge=2,
        multiple_of=2,
        description="Width of a head, even. Default: hidden_size / num_attention_heads.",
    )
    max_position_embeddings: int = Field(default=256, ge=2, description="Longest sequence in tokens.")
    vocab_size: int | None = Field(
        default=None,
        ge=1,
        description="Rows of the embedding. Default: the tokenizer's size, which is also the least.",
    )
    norm: Literal["rmsnorm", "layernorm"] = Field(
        default="rmsnorm", description="Norm before each branch and at the end."
    )
    norm_eps: float = Field(default=1e-5, gt=0, le=0.1, description="Added to the variance in every norm.")
    qk_norm: bool = Field(default=False, description="RMS norm on queries and keys of each head.")
    mlp: Literal["gated", "plain"] = Field(
        default="gated", description="gated: down(act(gate) * up); plain: down(act(up))."
    )
    activation: Literal["silu", "gelu", "relu2"] = Field(default="silu", description="relu2 is the square of ReLU.")
    attention_bias: bool = Field(default=False, description="Biases on the four attention projections.")
    attention_output_bias: bool = Field(
        default=True, description="With attention_bias, also on the last of the four; false is Qwen2's."
    )
    mlp_bias: bool = Field(default=False, description="Biases on the MLP's projections.")
    rope_theta: float = Field(default=10000.0, gt=0, description="Base of the rotary embedding.")
    tie_word_embeddings: bool = Field(default=True, description="The head multiplies by the embedding table.")
    sliding_window: int | None = Field(
        default=None, ge=1, description="A token sees this many, itself included. Default: all before it."
    )
    attn_dropout: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Attention probabilities dropped in training; above 0 attention is computed in full, unfused.",
    )
    residual_dropout: float = Field(
        default=0.0, ge=0, lt=1, description="Dropped in training from what each branch adds to the residual stream."
    )
    rope_scaling: RopeScalingConfig = Field(default=RopeScalingConfig(), description="Scaling of the rotary embedding.")


class TokenizerConfig(Section):
    """The tokenizer."""

    tokenizer_json: Path | None = Field(
        default=None, description="A byte-level BPE tokenizer.json (`sconce tokenizer train` makes one). Required."
    )


class DataStage(Section):
    """From a step on, other rows: more of them an update, or longer ones."""

    from_step: PositiveInt = Field(description="The first update of the stage comes after so many updates.")
    batch_size: int | None = Field(default=None, ge=1, description="Default: that of the stage before.")
    sequence_length: int | None = Field(default=None, ge=1, description="Default: that of the stage before.")


class DataConfig(Section):
    """Text, and how it becomes rows of tokens."""

    train_shards: tuple[Path, ...] = Field(
        default=(),
        description="Files of text, .jsonl, .json or .csv (all also as .gz or .zst), .parquet or .arrow, folders of "
        "them, patterns, data sets saved by `datasets`, or on the Hugging Face hub: "
        "hf://org/name@revision?config=NAME&split=NAME. Required, at least one.",
    )
    streaming: bool = Field(
        default=False,
        description="Train while train_shards, all of them on the hub, are still being read: only a window of tokens "
        "is here at a time.",
    )
    window_tokens: int = Field(
        default=2**23, ge=1, description="Tokens of a stream that are shuffled together; training begins after them."
    )
    cache_limit_gb: float = Field(default=10.0, gt=0, description="Disk that a stream may take, in 10^9 bytes.")
    max_samples: int | None = Field(
        default=None, ge=1, description="End a stream after so many documents, held-out ones among them."
    )
    stream_batch_size: int = Field(
        default=1000, ge=1, description="Documents of a stream tokenised at once; what is trained on is the same."
    )
    validation_shards: tuple[Path, ...] = Field(
        default=(), description="Held-out text. Default: validation_fraction of the documents of train_shards."
    )
    validation_fraction: float = Field(
        default=0.05, gt=0, lt=1, description="Documents held out, chosen by a hash of their text."
    )
    document: Document = Field(
        default="passage",
        description="What one document of a text file is: passage (running text, cut at a blank line after 4 KiB), "
        "line, blank-line (blocks), or file. In other files a record is one.",
    )
    text_field: str = Field(default="text", description="Field or column of a record that holds its text.")
    on_error: Literal["stop", "skip"] = Field(
        default="stop",
        description="At a record, a line of text, or a rest of a file that cannot be used: stop, or skip and count it.",
    )
    packing: Literal["concat", "bestfit"] = Field(
        default="concat",
        description="How documents fill rows: concat puts them one after the other and cuts anywhere; bestfit keeps "
        "what fits whole, packs rows almost full, and attention inside a document.",
    )
    weights: tuple[tuple[Weight, ...], ...] = Field(
        default=(),
        description="Mixes the paths of train_shards as sources: a list of weights, one for each path, of which rows "
        "are drawn in proportion; more such lists for stages. Default: every row once an epoch.",
    )
    weight_steps: tuple[PositiveInt, ...] = Field(
        default=(), description="Steps after which the second, third, ... list of weights applies, rising."
    )
    sequence_length: int | None = Field(
        default=None,
        ge=1,
        description="Predictions a row. Default: model.max_position_embeddings, which is also the most.",
    )
    batch_size: int = Field(default=8, ge=1, description="Sequences per optimizer step, over everything.")
    stages: tuple[DataStage, ...] = Field(
        default=(),
        description="Batch size and sequence length that change on the way: tables of from_step with batch_size, "
        "sequence_length or both, by rising steps; up to the first of them the keys beside this one apply.",
    )
    micro_batch_size: int | None = Field(
        default=None,
        ge=1,
        description="Sequences the device holds at once; with stages, of the longest rows, and of shorter ones as many "
        "more. Default: batch_size / gradient_accumulation_steps; without either, the most that fits its memory.",
    )
    gradient_accumulation_steps: int | None = Field(
        default=None,
        ge=1,
        description="Micro-batches per optimizer step, where micro_batch_size is not given. Not with stages.",
    )
    prefetch: int = Field(default=2, ge=1, description="Batches made ahead by a thread while the device works.")
    cache_dir: Path | None = Field(
        default=None, description="Where token shards are built. Default: data in the run folder."
    )

    @field_serializer("train_shards", "validation_shards", when_used="json")
    def _spell(self, paths: tuple[Path, ...]) -> list[str]:
        return [spelled(path) for path in paths]


class OptimizerConfig(Section):
    """The update rule, and clipping. Norms, biases and embeddings do not decay."""

    algorithm: Literal["adam_w", "adam", "sgd", "lion", "muon"] = Field(
        default="adam_w",
        description="muon is for matrices, with adam_w for the rest; adam and sgd add their decay to the gradient.",
    )
    learning_rate: float = Field(default=3e-4, gt=0, description="The schedule's peak.")
    weight_decay: float = Field(
        default=0.1, ge=0, description="On matrices and the head; decoupled but for adam and sgd."
    )
    beta1: float = Field(default=0.9, ge=0, lt=1, description="Decay of the first moment. Not for sgd.")
    beta2: float | None = Field(
        default=None,
        ge=0,
        lt=1,
        description="Decay of the second moment; of lion's memory. Default: 0.95, for lion 0.99. Not for sgd.",
    )
    momentum: float | None = Field(
        default=None, ge=0, lt=1, description="Of sgd and of muon's matrices. Default: 0.9 for sgd, 0.95 for muon."
    )
    epsilon: float = Field(
        default=1e-8, gt=0, description="Added to the root of the second moment. Not for sgd and lion."
    )
    max_grad_norm: float = Field(
        default=1.0, ge=0, description="Clip the gradient's global norm to this; 0 does not clip."
    )


class SchedulerConfig(Section):
    """The learning rate over the run. Every strategy warms up linearly over warmup_steps first."""

    strategy: Strategy = Field(default="cosine_with_warmup", description="Shape after the warm-up.")
    warmup_steps: int = Field(default=0, ge=0, description="Steps from 0 up to the peak; at most total_steps.")
    total_steps: int | None = Field(
        default=None, ge=1, description="Optimizer steps. Either this or total_epochs is required."
    )
    total_epochs: float | None = Field(
        default=None,
        gt=0,
        description="Passes over the training rows instead; with data.weights, as many at least over each source.",
    )
    min_lr: float = Field(
        default=0.0,
        ge=0,
        description="Where the decay ends; at most optimizer.learning_rate. Not for constant strategies.",
    )
    power: float = Field(default=1.0, gt=0, description="Exponent of polynomial decay.")
    decay_steps: int | None = Field(
        default=None, ge=1, description="Last steps, over which wsd decays. Default: a fifth."
    )


class CheckpointConfig(Section):
    """Checkpoints."""

    every_n_steps: int = Field(default=200, ge=1, description="Save this often, and at the end.")
    max_keep: int = Field(default=3, ge=1, description="Newest checkpoints kept, beside the best one.")
    save_best: bool = Field(default=True, description="Also save whenever the held-out loss is the lowest so far.")


class EvaluationConfig(Section):
    """Held-out evaluation."""

    every_n_steps: int = Field(default=200, ge=1, description="Evaluate this often, and at the end.")
    max_batches: int | None = Field(
        default=None,
        ge=1,
        description="Stop after so many batches, of batch_size or else data.batch_size sequences. "
        "Default: all held-out text.",
    )
    batch_size: int | None = Field(default=None, ge=1, description="Sequences at once. Default: the micro-batch.")


class LoggingConfig(Section):
    """Beside metrics.jsonl, which is always written."""

    tensorboard: bool = Field(default=True, description="Write TensorBoard files.")


class SampleConfig(Section):
    """Text the model writes during training and at the end."""

    every_n_steps: int | None = Field(default=None, ge=1, description="Sample this often. Default: only at the end.")
    prompt: str = Field(default="", description="Text to continue; empty starts a document.")
    max_tokens: int = Field(default=200, ge=1, description="Length, within max_position_embeddings.")
    temperature: float = Field(default=0.8, ge=0, description="0 takes the likeliest token.")
    top_k: int = Field(default=50, ge=0, description="Candidates at each token; 0 for all.")
    top_p: float = Field(default=1.0, gt=0, le=1, description="Probability that the candidates hold together.")


class RuntimeConfig(Section):
    """How the run behaves."""

    seed: int = Field(default=42, ge=0, description="Of initial weights, data order and samples.")
    precision: Literal["fp32", "bf16", "fp16", "mixed"] = Field(
        default="fp32",
        description="Of activations and matrix products; master weights and moments are always fp32. fp16 scales its "
        "loss; mixed is bf16.",
    )
    attention_backend: Literal["auto", "fused", "reference"] = Field(
        default="auto",
        description="reference makes every probability as an array; fused asks the framework's own kernel, unless "
        "there is dropout; auto is fused but for MLX from 256 tokens on, whose gradient needs all probabilities: "
        "it goes by blocks. Or what ATTN_BACKEND says.",
    )
    activation_checkpointing: str = Field(
        default="none",
        pattern=r"^(none|block|every-[1-9]\d*)$",
        description="Blocks computed again for their gradient instead of kept: none, block (all) or every-K.",
    )
    loss_chunk: int | None = Field(
        default=None,
        ge=0,
        description="Tokens whose logits are held at once; 0 for all. Default: a quarter of the micro-batch, on "
        "CUDA all of it, but at most 128 MiB of logits, on CUDA 1 GiB; less where memory is short; 512 at least.",
    )
    compile: bool | None = Field(default=None, description="Compile the step. Default: on a GPU, not on a CPU.")
    run_dir: Path | None = Field(default=None, description="Folder that the run owns; --run-dir wins.")
    log_every_n_steps: int = Field(default=10, ge=1, description="Write figures this often.")
    checkpoint: CheckpointConfig = Field(default=CheckpointConfig(), description="Checkpoints.")
    evaluation: EvaluationConfig = Field(default=EvaluationConfig(), description="Held-out evaluation.")
    logging: LoggingConfig = Field(default=LoggingConfig(), description="Where figures go.")
    sample: SampleConfig = Field(default=SampleConfig(), description="Samples.")


class RunConfig(Section):
    """A whole run."""

    model: ModelConfig = Field(default=ModelConfig(), description="The architecture.")
    tokenizer: TokenizerConfig = Field(default=TokenizerConfig(), description="The tokenizer.")
    data: DataConfig = Field(default=DataConfig(), description="Text and batches.")
    optimizer: OptimizerConfig = Field(default=OptimizerConfig(), description="The update.")
    scheduler: SchedulerConfig = Field(default=SchedulerConfig(), description="The learning rate.")
    runtime: RuntimeConfig = Field(default=RuntimeConfig(), description="Everything else.")
