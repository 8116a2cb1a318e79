"""`sconce orchestrate`: everything from text files to a trained model."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from sconce_cli.options import BackendOption, Hardware, JsonOption, OverrideOption, QuietOption

if TYPE_CHECKING:
    from sconce.orchestrate import LocalJob
    from sconce.training.run import RunFolder


class Mode(StrEnum):
    """Where the work happens."""

    local = "local"


class Schedule(StrEnum):
    """Strategies of scheduler.strategy, with hyphens."""

    constant = "constant"
    linear_warmup = "linear-warmup"
    cosine = "cosine"
    cosine_with_warmup = "cosine-with-warmup"
    polynomial = "polynomial"
    wsd = "wsd"


class Precision(StrEnum):
    """Of runtime.precision."""

    fp32 = "fp32"
    fp16 = "fp16"
    bf16 = "bf16"
    mixed = "mixed"


def _key(flag: str, key: str, meaning: str, least: float | None = None) -> typer.models.OptionInfo:
    """An option that stands for a config key, which the preset has a value for."""
    return typer.Option(flag, min=least, help=f"{meaning} ({key}).", rich_help_panel="Config keys by name")


_TOKENIZER = "Tokenizer and token shards"


def orchestrate(
    mode: Annotated[Mode, typer.Option("--mode", help="local: on this machine.")] = Mode.local,
    inputs: Annotated[
        list[Path] | None,
        typer.Option(
            "--input",
            metavar="FILE_OR_FOLDER",
            help="Text to learn from (.txt, .jsonl, .parquet, .gz). Repeatable. Without it: Python's own reference.",
        ),
    ] = None,
    validation: Annotated[
        list[Path] | None,
        typer.Option(
            "--validation",
            metavar="FILE_OR_FOLDER",
            help="Held-out text. Repeatable. Without it: some documents of --input.",
        ),
    ] = None,
    run_dir: Annotated[Path, typer.Option("--run-dir", help="Folder that the run owns.")] = Path("runs/local"),
    profile: Annotated[
        str | None,
        typer.Option("--profile", metavar="NAME", help="The config to start from, by name. [default: local_smoke]"),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan and the resolved config, and write nothing.")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume/--no-resume", help="Go on with a run that is there, or refuse to.")
    ] = True,
    vocab_size: Annotated[
        int | None,
        typer.Option(
            "--vocab-size",
            min=259,
            help="Tokens of the new tokenizer. [default: the preset's]",
            rich_help_panel=_TOKENIZER,
        ),
    ] = None,
    tokenizer_json: Annotated[
        Path | None,
        typer.Option("--tokenizer-json", help="Copy this one instead of training one.", rich_help_panel=_TOKENIZER),
    ] = None,
    skip_tokenizer: Annotated[
        bool,
        typer.Option(
            "--skip-tokenizer", help="Use the one in the run folder; refuse to train one.", rich_help_panel=_TOKENIZER
        ),
    ] = False,
    force_retrain_tokenizer: Annotated[
        bool,
        typer.Option(
            "--force-retrain-tokenizer",
            help="Train it anew; refused once a checkpoint was trained with it.",
            rich_help_panel=_TOKENIZER,
        ),
    ] = False,
    tokenizer_max_bytes: Annotated[
        int | None,
        typer.Option(
            "--tokenizer-max-bytes",
            min=1,
            help="Train it on no more text than this. [default: 512 MiB]",
            rich_help_panel=_TOKENIZER,
        ),
    ] = None,
    reuse_shards: Annotated[
        bool,
        typer.Option("--reuse-shards", help="Refuse to build token shards anew.", rich_help_panel=_TOKENIZER),
    ] = False,
    force_reshard: Annotated[
        bool,
        typer.Option("--force-reshard", help="Build token shards anew.", rich_help_panel=_TOKENIZER),
    ] = False,
    hidden_size: Annotated[int | None, _key("--hidden-size", "model.hidden_size", "Width", 1)] = None,
    intermediate_size: Annotated[
        int | None, _key("--intermediate-size", "model.intermediate_size", "Width of the MLP", 1)
    ] = None,
    layers: Annotated[int | None, _key("--layers", "model.num_layers", "Blocks", 1)] = None,
    heads: Annotated[int | None, _key("--heads", "model.num_attention_heads", "Query heads", 1)] = None,
    kv_heads: Annotated[int | None, _key("--kv-heads", "model.num_key_value_heads", "Key and value heads", 1)] = None,
    seq_len: Annotated[
        int | None, _key("--seq-len", "model.max_position_embeddings", "Longest sequence in tokens", 2)
    ] = None,
    batch_size: Annotated[int | None, _key("--batch-size", "data.batch_size", "Sequences a step", 1)] = None,
    grad_accum: Annotated[
        int | None, _key("--grad-accum", "data.gradient_accumulation_steps", "Micro-batches a step", 1)
    ] = None,
    steps: Annotated[int | None, _key("--steps", "scheduler.total_steps", "Optimizer steps", 1)] = None,
    learning_rate: Annotated[
        float | None, _key("--learning-rate", "optimizer.learning_rate", "Peak learning rate")
    ] = None,
    weight_decay: Annotated[
        float | None, _key("--weight-decay", "optimizer.weight_decay", "Decay of matrices", 0)
    ] = None,
    warmup_steps: Annotated[int | None, _key("--warmup-steps", "scheduler.warmup_steps", "Steps up", 0)] = None,
    schedule: Annotated[Schedule | None, _key("--schedule", "scheduler.strategy", "Shape after the warm-up")] = None,
    checkpoint_every: Annotated[
        int | None, _key("--checkpoint-every", "runtime.checkpoint.every_n_steps", "Save this often", 1)
    ] = None,
    max_checkpoints: Annotated[
        int | None, _key("--max-checkpoints", "runtime.checkpoint.max_keep", "Newest checkpoints kept", 1)
    ] = None,
    evaluate_every: Annotated[
        int | None, _key("--evaluate-every", "runtime.evaluation.every_n_steps", "Evaluate this often", 1)
    ] = None,
    eval_batches: Annotated[
        int | None, _key("--eval-batches", "runtime.evaluation.max_batches", "Batches of an evaluation", 1)
    ] = None,
    log_every: Annotated[int | None, _key("--log-every", "runtime.log_every_n_steps", "Log this often", 1)] = None,
    precision: Annotated[Precision | None, _key("--precision", "runtime.precision", "Of activations")] = None,
    seed: Annotated[int | None, _key("--seed", "runtime.seed", "Of weights, data order and samples", 0)] = None,
    tensorboard: Annotated[
        bool | None,
        _key("--tensorboard/--no-tensorboard", "runtime.logging.tensorboard", "Write TensorBoard files"),
    ] = None,
    backend: BackendOption = Hardware.auto,
    override: OverrideOption = None,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """From text files to a trained model: tokenizer, shards, training, evaluation, samples."""
    from sconce.orchestrate import TOKENIZER_BYTES, LocalJob, orchestrate_local
    from sconce.training.run import RunFolder
    from sconce_cli.console import make_reporter
    from sconce_cli.summary import report_outcome, train_command

    assert mode is Mode.local
    keys: dict[str, object] = {
        "model.hidden_size": hidden_size,
        "model.intermediate_size": intermediate_size,
        "model.num_layers": layers,
        "model.num_attention_heads": heads,
        "model.num_key_value_heads": kv_heads,
        "model.max_position_embeddings": seq_len,
        "data.batch_size": batch_size,
        "data.gradient_accumulation_steps": grad_accum,
        "scheduler.total_steps": steps,
        "optimizer.learning_rate": learning_rate,
        "optimizer.weight_decay": weight_decay,
        "scheduler.warmup_steps": warmup_steps,
        "scheduler.strategy": schedule and schedule.value.replace("-", "_"),
        "runtime.checkpoint.every_n_steps": checkpoint_every,
        "runtime.checkpoint.max_keep": max_checkpoints,
        "runtime.evaluation.every_n_steps": evaluate_every,
        "runtime.evaluation.max_batches": eval_batches,
        "runtime.log_every_n_steps": log_every,
        "runtime.precision": precision and precision.value,
        "runtime.seed": seed,
        "runtime.logging.tensorboard": tensorboard,
    }
    overrides = [f"{key}={value}" for key, value in keys.items() if value is not None] + (override or [])
    folder = RunFolder(run_dir)
    job = LocalJob(
        inputs=tuple(inputs or ()),
        validation=tuple(validation or ()),
        profile=profile,
        vocab_size=vocab_size,
        tokenizer_json=tokenizer_json,
        tokenizer=_one_of("--skip-tokenizer", skip_tokenizer, "--force-retrain-tokenizer", force_retrain_tokenizer)
        or "train",
        tokenizer_bytes=tokenizer_max_bytes or TOKENIZER_BYTES,
        shards=_one_of("--reuse-shards", reuse_shards, "--force-reshard", force_reshard) or "build",
        resume=resume,
        overrides=tuple(overrides),
    )
    if dry_run:
        typer.echo(_preview(job, folder, backend.value), nl=False)
        return
    reporter = make_reporter(quiet, as_json)
    outcome = orchestrate_local(job, folder, hardware=backend.value, reporter=reporter)
    again = train_command(run_dir / "training.toml", run_dir, backend.value, overrides)
    longer = train_command(run_dir / "training.toml", run_dir, backend.value, [*overrides, outcome.extend])
    report_outcome(outcome, folder, again, longer, reporter)
    raise typer.Exit(outcome.exit_code)


def _one_of(keep: str, kept: bool, replace: str, replaced: bool) -> Literal["reuse", "remake"] | None:
    """What two flags that exclude each other say together. Raises ConfigError when both are given."""
    from sconce.errors import ConfigError

    if kept and replaced:
        raise ConfigError(f"{keep} and {replace} exclude each other: give one of them")
    return "reuse" if kept else "remake" if replaced else None


def _preview(job: "LocalJob", folder: "RunFolder", hardware: Literal["auto", "mlx", "cuda", "cpu"]) -> str:
    """The plan on this machine as comments, and the config as TOML."""
    from sconce.config import dump_toml
    from sconce.orchestrate import planned_vocab_size, resolve_job
    from sconce_cli.plan import as_text, plan_here

    config = resolve_job(job, folder)
    rows = config.model.vocab_size or planned_vocab_size(job, folder)
    planned = config.model_copy(update={"model": config.model.model_copy(update={"vocab_size": rows})})
    lines = [f"# {line}".rstrip() for line in as_text(plan_here(planned, hardware))]
    return dump_toml(config, "\n".join([*lines, ""]), folder.root)
