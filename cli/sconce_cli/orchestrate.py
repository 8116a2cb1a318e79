"""`sconce orchestrate`: everything from text files to a trained model."""

import shlex
import sys
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from sconce_cli.options import BackendOption, Hardware, JsonOption, OverrideOption, QuietOption

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sconce.backend import Hardware as Choosable
    from sconce.cloud import CloudJob, Places
    from sconce.orchestrate import LocalJob
    from sconce.training.loop import Outcome
    from sconce.training.run import RunFolder
    from sconce_cli.console import Terminal
    from sconce_cli.preview import Preview


class Mode(StrEnum):
    """Where the work happens."""

    local = "local"
    cloud = "cloud"


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
_CLOUD = "With --mode cloud"
_STREAM = "Streaming from the Hugging Face hub"
DATASET = "HuggingFaceFW/fineweb"


def orchestrate(
    mode: Annotated[
        Mode,
        typer.Option(
            "--mode", help="cloud: a rented GPU, with everything under /workspace or the ORCHESTRATE_* roots."
        ),
    ] = Mode.local,
    inputs: Annotated[
        list[Path] | None,
        typer.Option(
            "--input",
            metavar="FILE_OR_FOLDER",
            help="Text to learn from (.txt, .jsonl, .parquet, .gz; hf://org/name). Repeatable. Without it: Python's "
            "own reference.",
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
    run_dir: Annotated[
        Path | None, typer.Option("--run-dir", help="Folder that the run owns. Default: runs/local.")
    ] = None,
    experiment: Annotated[
        str | None,
        typer.Option("--experiment", metavar="NAME", help="Name of all the run's folders.", rich_help_panel=_CLOUD),
    ] = None,
    train_shard_lines: Annotated[
        int | None,
        typer.Option(
            "--train-shard-lines",
            min=1,
            help="Documents a file that --input is cut into. Default: 1,000,000.",
            rich_help_panel=_CLOUD,
        ),
    ] = None,
    validation_shard_lines: Annotated[
        int | None,
        typer.Option(
            "--validation-shard-lines",
            min=1,
            help="The same of --validation. Default: as --train-shard-lines.",
            rich_help_panel=_CLOUD,
        ),
    ] = None,
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
            help="Train it on no more text than this. [default: 512 MiB, of a stream 128 MiB]",
            rich_help_panel=_TOKENIZER,
        ),
    ] = None,
    tokenizer_max_lines: Annotated[
        int | None,
        typer.Option("--tokenizer-max-lines", min=1, help="Nor on more lines than this.", rich_help_panel=_TOKENIZER),
    ] = None,
    reuse_shards: Annotated[
        bool,
        typer.Option(
            "--reuse-shards",
            help="Refuse to build token shards anew; in the cloud, to cut --input.",
            rich_help_panel=_TOKENIZER,
        ),
    ] = False,
    force_reshard: Annotated[
        bool,
        typer.Option(
            "--force-reshard",
            help="Build token shards anew; in the cloud, cut --input anew too.",
            rich_help_panel=_TOKENIZER,
        ),
    ] = False,
    stream: Annotated[
        bool,
        typer.Option(
            "--stream", help="Train on a data set of the hub while it is being read.", rich_help_panel=_STREAM
        ),
    ] = False,
    dataset: Annotated[
        str | None,
        typer.Option("--dataset", metavar="ORG/NAME", help=f"Which one. [default: {DATASET}]", rich_help_panel=_STREAM),
    ] = None,
    dataset_config: Annotated[
        str | None,
        typer.Option("--dataset-config", metavar="NAME", help="Its configuration.", rich_help_panel=_STREAM),
    ] = None,
    split: Annotated[
        str | None, typer.Option("--split", help="Its split. [default: train]", rich_help_panel=_STREAM)
    ] = None,
    max_samples: Annotated[
        int | None,
        typer.Option(
            "--max-samples", min=1, help="End it after so many documents (data.max_samples).", rich_help_panel=_STREAM
        ),
    ] = None,
    stream_batch_size: Annotated[
        int | None,
        typer.Option(
            "--stream-batch-size",
            min=1,
            help="Documents tokenised at once (data.stream_batch_size).",
            rich_help_panel=_STREAM,
        ),
    ] = None,
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
    loader_workers: Annotated[int | None, _key("--loader-workers", "data.prefetch", "Batches made ahead")] = None,
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
    from sconce.cloud import set_up_hub
    from sconce.orchestrate import LocalJob
    from sconce.training.signals import end_at_sigterm
    from sconce_cli.console import make_reporter

    keys: dict[str, object] = {
        "model.hidden_size": hidden_size,
        "model.intermediate_size": intermediate_size,
        "model.num_layers": layers,
        "model.num_attention_heads": heads,
        "model.num_key_value_heads": kv_heads,
        "model.max_position_embeddings": seq_len,
        "data.batch_size": batch_size,
        "data.gradient_accumulation_steps": grad_accum,
        "data.prefetch": _ahead(loader_workers),
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
        "data.max_samples": max_samples,
        "data.stream_batch_size": stream_batch_size,
    }
    chosen = {"--dataset": dataset, "--dataset-config": dataset_config, "--split": split}
    streamed = _streamed(stream, inputs or [], chosen)
    if streamed is not None:
        keys["data.streaming"] = True
    overrides = [f"{key}={value}" for key, value in keys.items() if value is not None] + (override or [])
    job = LocalJob(
        inputs=tuple(inputs or ()) if streamed is None else (streamed,),
        validation=tuple(validation or ()),
        profile=profile,
        vocab_size=vocab_size,
        tokenizer_json=tokenizer_json,
        tokenizer=_one_of("--skip-tokenizer", skip_tokenizer, "--force-retrain-tokenizer", force_retrain_tokenizer)
        or "train",
        tokenizer_bytes=tokenizer_max_bytes,
        tokenizer_lines=tokenizer_max_lines,
        shards=_one_of("--reuse-shards", reuse_shards, "--force-reshard", force_reshard) or "build",
        resume=resume,
        overrides=tuple(overrides),
    )
    target = _target(mode, job, run_dir, experiment, train_shard_lines, validation_shard_lines)
    if dry_run:
        with TemporaryDirectory() as elsewhere:  # for what the libraries of the hub keep of what they read
            set_up_hub(Path(elsewhere))
            preview = target.preview(backend.value)
        typer.echo(preview.as_json() if as_json else preview.as_toml(), nl=False)
        return
    reporter = make_reporter(quiet, as_json)
    with end_at_sigterm(reporter.say):
        outcome = target.run(backend.value, reporter)
    raise typer.Exit(outcome.exit_code)


def _ahead(batches: int | None) -> int | None:
    """Of --loader-workers. Raises ConfigError for less than one, which elsewhere means none beside the main thread."""
    from sconce.errors import ConfigError

    if batches is not None and batches < 1:
        raise ConfigError(
            f"--loader-workers: found {batches}, expected 1 or more: one batch is always made ahead, by a thread: give "
            "1, or leave it out"
        )
    return batches


def _target(
    mode: Mode,
    job: "LocalJob",
    run_dir: Path | None,
    experiment: str | None,
    train_lines: int | None,
    validation_lines: int | None,
) -> "_Local | _Cloud":
    """Where the job is to be done. Raises ConfigError for an option of the other place."""
    from sconce.cloud import SHARD_LINES, CloudJob, find_places
    from sconce.errors import ConfigError
    from sconce.training.run import RunFolder

    if mode is Mode.local:
        given = {
            "--experiment": experiment,
            "--train-shard-lines": train_lines,
            "--validation-shard-lines": validation_lines,
        }
        for flag, value in given.items():
            if value is not None:
                instead = ": give --run-dir runs/NAME" if flag == "--experiment" else ", where text is cut into files"
                raise ConfigError(f"{flag}: is for --mode cloud{instead}")
        return _Local(job, RunFolder(run_dir or Path("runs/local")))
    if run_dir is not None:
        raise ConfigError("--run-dir: in the cloud a run is a folder of ORCHESTRATE_RUNS_ROOT: give --experiment NAME")
    if experiment is None:
        raise ConfigError("--experiment: missing: give a NAME, by which the same command finds its run again")
    places = find_places(experiment)
    _check_cut(job, places, train_lines, validation_lines)
    lines = train_lines or SHARD_LINES
    cloud = CloudJob(name=experiment, local=job, train_lines=lines, validation_lines=validation_lines or lines)
    return _Cloud(cloud, places)


def _check_cut(job: "LocalJob", places: "Places", train_lines: int | None, validation_lines: int | None) -> None:
    """Raise ConfigError for flags that say how text is cut into files, where none is."""
    from sconce.cloud import is_to_be_cut
    from sconce.errors import ConfigError
    from sconce.orchestrate import is_streamed

    streamed = is_streamed(job)
    train = not streamed and is_to_be_cut(job.inputs, places.train)
    held_out = not streamed and is_to_be_cut(job.validation, places.validation)
    idle = {  # without lines of its own, held-out text is cut by those of --train-shard-lines
        "--train-shard-lines": train_lines is not None and not (train or (held_out and validation_lines is None)),
        "--validation-shard-lines": validation_lines is not None and not held_out,
        "--reuse-shards": job.shards == "reuse" and not (train or held_out or streamed),
    }
    why = "a stream is not cut into files"
    if not streamed:
        why = "cuts nothing here: only text that --input or --validation names, and that is not on the volume, is cut"
    for flag, is_idle in idle.items():
        if is_idle:
            raise ConfigError(f"{flag}: {why}: leave it out")


@dataclass(frozen=True)
class _Local:
    """A job on this machine, in a folder of the user's choice."""

    job: "LocalJob"
    folder: "RunFolder"

    def preview(self, hardware: "Choosable") -> "Preview":
        from sconce_cli.preview import make_preview

        return make_preview(self.job, self.folder, hardware)

    def run(self, hardware: "Choosable", reporter: "Terminal") -> "Outcome":
        from sconce.orchestrate import orchestrate_local
        from sconce_cli.summary import report_outcome, train_command

        outcome = orchestrate_local(self.job, self.folder, hardware=hardware, reporter=reporter)
        config, overrides = self.folder.root / "training.toml", self.job.overrides
        again = train_command(config, self.folder.root, hardware, overrides)
        longer = train_command(config, self.folder.root, hardware, [*overrides, outcome.extend])
        report_outcome(outcome, self.folder, again, longer, reporter)
        return outcome


@dataclass(frozen=True)
class _Cloud:
    """A job on a rented machine, in the folders of an experiment."""

    job: "CloudJob"
    places: "Places"

    def preview(self, hardware: "Choosable") -> "Preview":
        from sconce.cloud import as_local, check_job
        from sconce_cli.preview import make_preview

        checks = check_job(self.job, self.places, hardware)
        return make_preview(as_local(self.job, self.places), self.places.run, hardware, checks)

    def run(self, hardware: "Choosable", reporter: "Terminal") -> "Outcome":
        from sconce.cloud import orchestrate_cloud
        from sconce_cli.summary import program, report_outcome

        outcome = orchestrate_cloud(self.job, hardware=hardware, reporter=reporter)
        words = [program(), *sys.argv[1:]]  # the same command goes on, on whatever machine
        longer = shlex.join([*words, "--override", outcome.extend])
        report_outcome(outcome, self.places.run, shlex.join(words), longer, reporter)
        return outcome


def _streamed(stream: bool, inputs: list[Path], chosen: "Mapping[str, str | None]") -> Path | None:
    """The data set to stream; None without --stream. Raises ConfigError for flags that do not go together."""
    from sconce.config import dataset_address
    from sconce.errors import ConfigError

    given = [flag for flag, value in chosen.items() if value is not None]
    if not stream:
        if given:
            raise ConfigError(f"{given[0]}: goes with --stream; to have all of it here, --input hf://ORG/NAME")
        return None
    if inputs:
        raise ConfigError("--stream and --input exclude each other: name the data set with --dataset")
    return Path(str(dataset_address(chosen["--dataset"] or DATASET, chosen["--split"], chosen["--dataset-config"])))


def _one_of(keep: str, kept: bool, replace: str, replaced: bool) -> Literal["reuse", "remake"] | None:
    """What two flags that exclude each other say together. Raises ConfigError when both are given."""
    from sconce.errors import ConfigError

    if kept and replaced:
        raise ConfigError(f"{keep} and {replace} exclude each other: give one of them")
    return "reuse" if kept else "remake" if replaced else None
