"""The model card of a checkpoint: a README.md, as Hugging Face's hub shows it, of what is known and nothing else."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from sconce.checkpoint.evaluations import Result, results_of
from sconce.checkpoint.load import LoadedCheckpoint
from sconce.checkpoint.stream import RUN
from sconce.config.read import flat
from sconce.errors import CheckpointError
from sconce.hub_address import parse_address
from sconce.interop.hf import class_for, spec_from_config
from sconce.spec import ModelSpec
from sconce.training.metrics import read_metrics

README, CURVE = "README.md", "loss.png"
MAX_ROWS = 12  # of the table of losses
_LICENSE = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+-]*")
# What of a run's config tells how it was trained: no paths, which are the user's own.
_TOLD = (
    "data.batch_size",
    "data.sequence_length",
    "data.packing",
    "optimizer.",
    "scheduler.",
    "runtime.precision",
    "runtime.seed",
)

Row = tuple[str, object]
Records = Sequence[Mapping[str, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class CardOptions:
    """What no checkpoint knows. `license` is an identifier of the hub's such as apache-2.0; None leaves it open.

    `usage` is Markdown that says how to load what the card is for; `library` what the hub should name as loading it.
    """

    name: str
    usage: str
    library: str = "transformers"
    license: str | None = None


def usage_with_transformers(name: str) -> str:
    """How transformers loads it, by its folder's or repository's name."""
    return f"""```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{name}")
model = AutoModelForCausalLM.from_pretrained("{name}")
inputs = tokenizer("Once", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=50)[0]))
```"""


def model_card(checkpoint: LoadedCheckpoint, options: CardOptions) -> dict[str, bytes]:
    """README.md, and loss.png where the run's metrics are still beside the checkpoint, by name.

    Raises CheckpointError when the license is no identifier.
    """
    check_license(options.license)
    records = run_records(checkpoint)
    curve = _curve(records)
    parts = [
        _front_matter(checkpoint, options),
        f"# {options.name}\n\n{_summary(checkpoint)}",
        f"## Use\n\n{options.usage.strip()}",
        "## Architecture\n\n" + _table(("", ""), _architecture(checkpoint)),
        "## Training\n\n" + _table(("", ""), _training(checkpoint)),
        *_evaluations(records),
        *_losses(records, bool(curve)),
        *_scores(checkpoint),
    ]
    return {README: ("\n\n".join(part.rstrip() for part in parts) + "\n").encode(), **curve}


def _front_matter(checkpoint: LoadedCheckpoint, options: CardOptions) -> str:
    datasets = sorted({parse_address(address).repo for address in checkpoint.record.commits})
    listed = ["datasets:", *(f"- {name}" for name in datasets)] if datasets else []
    return front_matter(options.library, options.license, "pipeline_tag: text-generation", *listed)


def check_license(license_: str | None) -> None:
    """Raise CheckpointError for one that is no identifier; None is none."""
    if license_ is not None and _LICENSE.fullmatch(license_) is None:
        raise CheckpointError(
            f"--license {license_!r}: expected an identifier such as apache-2.0, mit, cc-by-4.0 or other"
        )


def front_matter(library: str, license_: str | None, *others: str) -> str:
    """What the hub reads of a card: YAML between two lines of dashes; `others` are lines of it."""
    lines = [
        "---",
        *([] if license_ is None else [f"license: {license_}"]),
        f"library_name: {library}",
        *others,
        "tags:",
        "- sconce",
        "---",
    ]
    return "\n".join(lines)


def _summary(checkpoint: LoadedCheckpoint) -> str:
    spec, record = _spec(checkpoint), checkpoint.record
    text = f"A decoder-only language model of {spec.num_params:,} parameters, trained with Sconce. "
    if record.imported_steps or record.is_imported:
        text += f"It came from elsewhere: its first weights and {record.imported_steps:,} steps are not Sconce's. "
    if "chat_template" in checkpoint.table("tokenizer_config.json"):
        return text + "Its tokenizer has a chat template."
    return text + "It continues text; it was not taught to follow instructions, nor what not to say."


def _architecture(checkpoint: LoadedCheckpoint) -> Iterator[Row]:
    spec = _spec(checkpoint)
    try:
        yield "class", class_for(spec)
    except CheckpointError:
        yield "class", "none of Hugging Face's"
    yield "parameters", f"{spec.num_params:,}"
    for key, value in asdict(spec).items():
        if key == "rope_scaling" and spec.rope_scaling is not None:
            said = [f"{name} {part}" for name, part in asdict(spec.rope_scaling).items() if part is not None]
            yield key, ", ".join(said)
        elif value is not None and "dropout" not in key and (key != "attention_output_bias" or spec.attention_bias):
            yield key, str(value).lower() if isinstance(value, bool) else value


def _training(checkpoint: LoadedCheckpoint) -> Iterator[Row]:
    record = checkpoint.record
    yield "steps", f"{record.step:,}"
    yield "tokens", f"{record.tokens:,}"
    config = checkpoint.run_config if RUN in record.files else {}
    for key, value in flat(config):
        if value is not None and key.startswith(_TOLD):
            yield key, str(value).lower() if isinstance(value, bool) else value
    if record.best is not None:
        yield "best held-out loss", f"{record.best[1]:.4f} nats a token, at step {record.best[0]:,}"
    for address, commit in record.commits.items():
        yield "data set", f"{address} at commit {commit}"
    yield "data fingerprint", record.cursor.get("fingerprint") or "unknown"
    yield "tokenizer sha256", record.tokenizer_sha256
    yield "hardware", record.hardware.get("name") or "unknown"
    yield "software", ", ".join(f"{name} {version}" for name, version in record.versions.items())


def _evaluations(records: Records) -> Iterator[str]:
    """What the run measured last on the way."""
    evaluations = [record for record in records if "eval_loss" in record]
    if evaluations:
        last = evaluations[-1]
        names = {"eval_loss": "loss (nats a token)", "perplexity": "perplexity", "bits_per_byte": "bits a byte"}
        rows: list[Row] = [(name, f"{last[key]:.4f}") for key, name in names.items() if key in last]
        yield f"## Evaluation\n\nOn held-out text, at step {int(last['step']):,}.\n\n" + _table(("", ""), rows)


def _losses(records: Records, has_curve: bool) -> Iterator[str]:
    losses = [record for record in records if "loss" in record]
    if losses:
        picture = f"![Training and held-out loss over steps]({CURVE})\n\n" if has_curve else ""
        some = losses[:: max(1, -(-len(losses) // MAX_ROWS))]
        some = some if some[-1] is losses[-1] else [*some, losses[-1]]
        table = _table(("step", "training loss"), [(f"{int(one['step']):,}", f"{one['loss']:.4f}") for one in some])
        yield f"## Loss\n\n{picture}{table}"


def _scores(checkpoint: LoadedCheckpoint) -> Iterator[str]:
    """What evaluations found of exactly these weights, if any were kept beside the checkpoint."""
    results = results_of(checkpoint)
    if results:
        rows = [(f"{_public_name(one)} ({_in_words(one['settings'])})", _in_words(one["figures"])) for one in results]
        yield "## Scores\n\nOf these weights, by `sconce eval`.\n\n" + _table(("", ""), rows)


def _public_name(result: Result) -> str:
    """The name of a text or a task; of a path only its end, as the rest is the user's own."""
    kind, mark, path = result["name"].rpartition(": ")
    return result["name"] if result["kind"] == "task" else f"{kind}{mark}{Path(path).name}"


def _in_words(values: Mapping[str, object]) -> str:
    numbers = ((name, f"{value:.4f}" if isinstance(value, float) else value) for name, value in values.items())
    return ", ".join(f"{name} {value}" for name, value in numbers if value is not None)


def _table(head: tuple[str, str], rows: Iterator[Row] | Sequence[Row]) -> str:
    lines = [f"| {head[0]} | {head[1]} |", "|---|---|"]
    lines += [f"| {_cell(name)} | {_cell(value)} |" for name, value in rows]
    return "\n".join(lines)


def _cell(value: object) -> str:
    return " ".join(str(value).split()).replace("|", "\\|")


def _spec(checkpoint: LoadedCheckpoint) -> ModelSpec:
    return spec_from_config(checkpoint.table("config.json"))


def run_records(checkpoint: LoadedCheckpoint) -> list[dict[str, float]]:
    """The run's figures up to this checkpoint, none where it is no longer in its run's folder."""
    folder = checkpoint.path.resolve().parent
    if folder.name != "checkpoints":
        return []
    return [
        record for record in read_metrics(folder.parent / "metrics.jsonl") if record["step"] <= checkpoint.record.step
    ]


def _curve(records: list[dict[str, float]]) -> dict[str, bytes]:
    if not any("loss" in record for record in records):
        return {}
    from sconce.training.plot import loss_png  # noqa: PLC0415 (matplotlib takes half a second to load)

    return {CURVE: loss_png(records)}
