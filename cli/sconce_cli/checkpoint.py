"""`sconce checkpoint`: what checkpoints a run has, what is in one, whether it is intact, how two differ."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from sconce.files import readable_size
from sconce_cli.options import BackendOption, Hardware, JsonOption

if TYPE_CHECKING:
    from sconce.checkpoint.compare import Comparison, Distance
    from sconce.checkpoint.contents import Part, TensorFacts
    from sconce.checkpoint.listing import Listed
    from sconce.checkpoint.load import LoadedCheckpoint
    from sconce.checkpoint.record import Checkpoint
    from sconce.checkpoint.verify import Check
    from sconce.training.deep import DeepVerifier

app = typer.Typer(help="List, inspect, verify or compare checkpoints.", no_args_is_help=True)

_PLACE = "A checkpoint folder, a LATEST or BEST file, or a run folder"


@app.command("list")
def list_(
    run: Annotated[Path, typer.Argument(help="A run folder, or its checkpoints folder.")], as_json: JsonOption = False
) -> None:
    """List a run's checkpoints, newest first, and those set aside as damaged.

    Damage is looked for in the manifests and the files' sizes: `verify` reads their content as well.
    """
    from sconce.checkpoint.listing import list_checkpoints

    entries = list_checkpoints(run)
    if as_json:
        _echo_json([_listed_json(entry) for entry in entries])
        return
    head = ("checkpoint", "tokens", "size", "backend", "precision", "best held-out so far", "")
    _echo_table([head, *map(_listed_cells, entries)], right={1, 2})


@app.command()
def inspect(
    path: Annotated[Path, typer.Argument(help=f"{_PLACE} (its newest checkpoint).")],
    tensors: Annotated[bool, typer.Option("--tensors", help="Read every tensor and show its figures.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Show everything a checkpoint says about itself, and what its tensors are."""
    from dataclasses import asdict

    from sconce.checkpoint.contents import state_parts, tensor_facts
    from sconce.checkpoint.load import open_checkpoint

    checkpoint = open_checkpoint(path, verify=False)
    model, parts = _model_facts(checkpoint), state_parts(checkpoint)
    facts = list(tensor_facts(checkpoint)) if tensors else None
    if as_json:
        _echo_json(
            {
                "path": str(checkpoint.path),
                **_record_json(checkpoint.record),
                "model": model,
                "parts": [asdict(part) for part in parts],
                **({} if facts is None else {"tensors": [asdict(fact) for fact in facts]}),
            }
        )
        return
    typer.echo(str(checkpoint.path))
    _echo_pairs(_record_pairs(checkpoint.record))
    typer.echo("\nmodel")
    _echo_pairs(model.items())
    _echo_parts(parts)
    _echo_files(checkpoint.record)
    if facts is not None:
        _echo_tensors(facts)


@app.command()
def verify(
    path: Annotated[Path, typer.Argument(help=f"{_PLACE} (all its checkpoints).")],
    deep: Annotated[
        bool, typer.Option("--deep", help="Also load the model and reproduce the resume certificate.")
    ] = False,
    backend: BackendOption = Hardware.auto,
    as_json: JsonOption = False,
) -> None:
    """Check sizes, hashes, the manifest, every tensor's name and shape, and that all values are finite.

    With --deep, on --backend, also the token shards' hashes, and the loss that the next micro-batch must have.

    Changes nothing, but that --deep makes a missing or damaged packing plan again. Exit code 0: all intact; 2: a
    fault, or with --deep a checkpoint that has no certificate to compare with, though it was not imported.
    """
    from sconce.checkpoint.verify import folders_to_verify
    from sconce.errors import CheckpointError

    folders = folders_to_verify(path)
    verifier = None
    if deep:
        from sconce.training.deep import DeepVerifier

        verifier = DeepVerifier(backend.value, lambda line: typer.echo(f"note: {line}", err=True))
    faults = {folder: _verify_one(folder, verifier, as_json) for folder in folders}
    found = {folder: fault for folder, fault in faults.items() if fault is not None}
    if not found:
        return
    if len(folders) == 1:
        raise CheckpointError(*found.values())
    names = ", ".join(folder.name for folder in found)
    raise CheckpointError(f"{path}: {len(found)} of {len(folders)} checkpoints not intact: {names}")


@app.command()
def diff(
    a: Annotated[Path, typer.Argument(metavar="A", help=f"{_PLACE} (its newest checkpoint).")],
    b: Annotated[Path, typer.Argument(metavar="B", help="The same, to compare with A.")],
    top: Annotated[int, typer.Option("--top", min=0, metavar="N", help="Tensors to show, most different first.")] = 10,
    as_json: JsonOption = False,
) -> None:
    """Compare two checkpoints: every tensor, the configs, the positions in the data.

    max abs is the largest difference of two values; relative is that over A's largest value.
    """
    from sconce.checkpoint.compare import compare
    from sconce.checkpoint.load import open_checkpoint

    left, right = open_checkpoint(a, verify=False), open_checkpoint(b, verify=False)
    comparison = compare(left, right)
    facts = _changed_facts(left, right)
    if as_json:
        _echo_json(_comparison_json(left, right, comparison, facts))
        return
    typer.echo(f"A {left.path}\nB {right.path}")
    for name, (old, new) in facts.items():
        typer.echo(f"{name}: {old} in A, {new} in B")
    for change in comparison.config:
        typer.echo(f"config {change.key}: {change.old!r} in A, {change.new!r} in B")
    _echo_comparison(comparison, top)


def _verify_one(folder: Path, verifier: "DeepVerifier | None", as_json: bool) -> str | None:
    """Print one checkpoint's checks; what keeps it from being called intact, if anything."""
    from sconce.errors import SconceError

    found: dict[str, str] = {}
    fault, verdict = None, "intact"
    if not as_json:
        typer.echo(str(folder))
    try:
        for check in _checks(folder, verifier):
            found[check.name] = check.found
            if not as_json:
                typer.echo(f"  {check.name:<12}{check.found}")
            if not check.passed:
                fault = f"{folder}: {check.name} not compared: {check.found}"
                verdict = "files intact, NOT COMPARED with the run that wrote them"
    except (SconceError, OSError) as error:
        fault = str(error)
        verdict = f"NOT INTACT: {fault}"
    if as_json:
        _echo_json({"path": str(folder), "intact": fault is None, "checks": found, "fault": fault})
    else:
        typer.echo(f"  {verdict}")
    return fault


def _checks(folder: Path, verifier: "DeepVerifier | None") -> "Iterator[Check]":
    from sconce.checkpoint.verify import Check, verify
    from sconce.interop.hf import spec_from_config

    yield from verify(folder, spec_from_config)
    if verifier is not None:
        result = verifier.check(folder)
        yield Check("certificate", result.found, passed=result.compared)


def _model_facts(checkpoint: "LoadedCheckpoint") -> dict[str, object]:
    """What config.json says of the model, with the run's dropout, and how large that makes it."""
    from dataclasses import asdict

    from sconce.errors import CheckpointError
    from sconce.interop.hf import spec_from_config

    config = checkpoint.table("config.json")
    try:
        spec = spec_from_config(config)
    except CheckpointError as error:
        return {"unknown": str(error)}  # the rest is still worth seeing
    fields = {"model_type": config["model_type"], "parameters": spec.num_params, **asdict(spec), **_dropout(checkpoint)}
    scaling = {} if spec.rope_scaling is None else asdict(spec.rope_scaling)
    return {**fields, "rope_scaling": {key: value for key, value in scaling.items() if value is not None} or None}


def _dropout(checkpoint: "LoadedCheckpoint") -> dict[str, object]:
    """The rates of the run: config.json is for those who load the model, and has none."""
    if "run.json" not in checkpoint.record.files:
        return {}
    model = checkpoint.run_config.get("model")
    given = cast(dict[str, object], model) if isinstance(model, dict) else {}
    return {name: given.get(name, 0.0) for name in ("attn_dropout", "residual_dropout")}


def _record_json(record: "Checkpoint") -> dict[str, object]:
    from dataclasses import asdict

    best = record.best
    return {**asdict(record), "best": None if best is None else {"step": best[0], "loss": best[1]}}


def _record_pairs(record: "Checkpoint") -> list[tuple[str, object]]:
    """The manifest for people, files apart."""
    return [
        ("step", record.step),
        ("tokens", record.tokens),
        ("best", _best(record)),
        ("certificate", _certificate(record)),
        *((f"cursor {key}", value) for key, value in record.cursor.items()),
        ("backend", record.backend),
        ("precision", record.precision),
        ("versions", _inline(record.versions)),
        ("hardware", _inline(_readable(record.hardware))),
    ]


def _readable(hardware: Mapping[str, object]) -> dict[str, object]:
    """Without what is unknown, bytes as MiB or GiB and FLOP/s in teraflops."""
    known = {key: value for key, value in hardware.items() if value is not None}
    for key, value in known.items():
        if isinstance(value, int | float) and key.endswith("_bytes"):
            known[key] = readable_size(int(value))
        elif isinstance(value, int | float) and key.endswith("_flops_per_second"):
            known[key] = f"{value / 1e12:.3g} TFLOP/s"
    return known


def _listed_json(entry: "Listed") -> dict[str, object]:
    facts = {} if entry.record is None else _record_json(entry.record)
    return {
        "path": str(entry.path),
        "step": entry.step,
        **{key: facts.get(key) for key in ("tokens", "best", "backend", "precision")},
        "bytes": entry.bytes,
        "is_latest": entry.is_latest,
        "is_best": entry.is_best,
        "set_aside": entry.set_aside,
        "fault": entry.fault,
    }


def _listed_cells(entry: "Listed") -> Sequence[str]:
    record = entry.record
    marks = [
        name
        for name, applies in (("LATEST", entry.is_latest), ("BEST", entry.is_best), ("set aside", entry.set_aside))
        if applies
    ]
    if entry.fault is not None:
        marks.append(f"DAMAGED: {entry.fault}")
    known = ("?",) * 4 if record is None else (f"{record.tokens:,}", record.backend, record.precision, _best(record))
    return entry.path.name, known[0], readable_size(entry.bytes), *known[1:], ", ".join(marks)


def _best(record: "Checkpoint") -> str:
    if record.best is None:
        return "-"
    step, loss = record.best
    return f"{loss:.4f} at step {step}" + (" (here)" if step == record.step else "")


def _certificate(record: "Checkpoint") -> str:
    if record.certificate is None:
        return "none"
    loss, rows = record.certificate.loss, record.certificate.rows
    shown = ", ".join(map(str, rows[:4])) + (", ..." if len(rows) > 4 else "")
    return f"loss {loss:.6f} on the next {len(rows)} rows ({shown})"


def _changed_facts(a: "LoadedCheckpoint", b: "LoadedCheckpoint") -> dict[str, tuple[object, object]]:
    """Steps, and whatever of the data cursors differs."""
    facts: dict[str, tuple[object, object]] = {"step": (a.record.step, b.record.step)}
    left, right = a.record.cursor, b.record.cursor
    for key in {**left, **right}:
        facts[f"cursor {key}"] = (left.get(key), right.get(key))
    return {name: pair for name, pair in facts.items() if pair[0] != pair[1]}


def _comparison_json(
    a: "LoadedCheckpoint",
    b: "LoadedCheckpoint",
    comparison: "Comparison",
    facts: Mapping[str, tuple[object, object]],
) -> dict[str, object]:
    from dataclasses import asdict

    return {
        "a": {"path": str(a.path), "step": a.record.step, "cursor": dict(a.record.cursor)},
        "b": {"path": str(b.path), "step": b.record.step, "cursor": dict(b.record.cursor)},
        "identical": comparison.identical,
        "changed": {name: {"a": old, "b": new} for name, (old, new) in facts.items()},
        "config": [asdict(change) for change in comparison.config],
        "parts": [
            {"part": part.name, "tensors": part.tensors, "changed": part.changed, **_distance_json(part.distance)}
            for part in comparison.parts
        ],
        "tensors": [
            {"name": tensor.name, "shape": tensor.shape, **_distance_json(tensor.distance)}
            for tensor in comparison.tensors
        ],
        "shapes": [asdict(shape) for shape in comparison.shapes],
        "only_a": comparison.only_a,
        "only_b": comparison.only_b,
    }


def _distance_json(distance: "Distance") -> dict[str, object]:
    return {
        "identical": distance.identical,
        "max_abs": distance.max_abs,
        "relative": distance.relative,
        "cosine": distance.cosine,
        "non_finite": distance.non_finite,
    }


def _echo_comparison(comparison: "Comparison", top: int) -> None:
    for letter, names in (("A", comparison.only_a), ("B", comparison.only_b)):
        for name in names:
            typer.echo(f"only in {letter}: {name}")
    for shape in comparison.shapes:
        typer.echo(f"{shape.name}: shape {list(shape.a)} in A, {list(shape.b)} in B")
    if comparison.identical:
        typer.echo(f"identical: {len(comparison.tensors)} tensors, bit for bit")
        return
    right = {1, 2, 3, 4, 5}
    figures = ("max abs", "relative", "cosine", "")
    typer.echo()
    rows = [
        (part.name, f"{part.changed}", f"of {part.tensors}", *_distance_cells(part.distance))
        for part in comparison.parts
    ]
    _echo_table([("part", "changed", "", *figures), *rows], right)
    changed = [tensor for tensor in comparison.tensors if not tensor.distance.identical][:top]
    if changed:
        typer.echo()
        worst = [(tensor.name, *_distance_cells(tensor.distance)) for tensor in changed]
        _echo_table([("most different", *figures), *worst], right={1, 2, 3})


def _distance_cells(distance: "Distance") -> tuple[str, str, str, str]:
    if distance.identical:
        return "0", "0", "", "identical"
    relative = "A is 0" if distance.relative is None else f"{distance.relative:.3g}"
    cosine = "-" if distance.cosine is None else f"{distance.cosine:.8f}"
    note = f"{distance.non_finite:,} not finite" if distance.non_finite else ""
    return f"{distance.max_abs:.3g}", relative, cosine, note


def _echo_parts(parts: Sequence["Part"]) -> None:
    typer.echo(f"\n{sum(part.tensors for part in parts)} tensors")
    _echo_table([(f"  {part.name}", f"{part.tensors}", f"{part.values:,} values") for part in parts], right={1, 2})


def _echo_files(record: "Checkpoint") -> None:
    files = record.files.items()
    typer.echo(f"\n{len(files)} files, {readable_size(sum(file.bytes for _, file in files))}")
    _echo_table([(f"  {name}", f"{file.bytes:,}", file.sha256) for name, file in files], right={1})


def _echo_tensors(facts: Iterable["TensorFacts"]) -> None:
    typer.echo()
    rows = [
        (
            fact.name,
            "x".join(map(str, fact.shape)),
            *map(_figure, (fact.rms, fact.minimum, fact.maximum)),
            f"{fact.non_finite:,}" if fact.non_finite else "",
        )
        for fact in facts
    ]
    _echo_table([("tensor", "shape", "rms", "min", "max", "not finite"), *rows], right={1, 2, 3, 4, 5})


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _inline(values: Mapping[str, object]) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items())


def _echo_pairs(pairs: Iterable[tuple[str, object]]) -> None:
    for key, value in pairs:
        shown = f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else value
        typer.echo(f"  {key:<24}{shown}")


def _echo_table(rows: Sequence[Sequence[str]], right: set[int]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [
            cell.rjust(width) if index in right else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        typer.echo("  ".join(cells).rstrip())


def _echo_json(value: object) -> None:
    import json

    typer.echo(json.dumps(value, ensure_ascii=False))
