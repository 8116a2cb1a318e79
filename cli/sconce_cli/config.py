"""`sconce config`: look at a config, check it, convert an old one, or read what every key means."""

from pathlib import Path
from typing import Annotated

import typer

from sconce_cli.options import OverrideOption, ProfileOption, check_source, load_source, source_path

app = typer.Typer(help="Look at a config, check or convert it, or print the reference.", no_args_is_help=True)

ConfigArgument = Annotated[Path | None, typer.Argument(help="TOML, YAML or JSON.")]


@app.command()
def show(
    config: ConfigArgument = None,
    profile: ProfileOption = None,
    override: OverrideOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")] = False,
) -> None:
    """Print every key's value, and where it comes from: file, preset, override, default, or derived from others."""
    import copy
    import json
    from dataclasses import asdict

    from sconce.config import config_from, load_table, preset_table
    from sconce.config.overrides import keys_of
    from sconce.config.provenance import settings

    check_source(config, profile)
    table, notes = (preset_table(profile), []) if profile is not None else load_table(source_path(config))
    given = copy.deepcopy(table)
    resolved = config_from(table, str(config or f"preset {profile}"), override or [])
    overridden = {key for text in override or [] for key in keys_of(text)}
    found = list(settings(resolved, given, overridden, "file" if profile is None else "preset"))
    if as_json:
        typer.echo(json.dumps({entry.key: asdict(entry) for entry in found}))
        return
    widths = max(len(entry.key) for entry in found), max(len(entry.origin) for entry in found)
    for entry in found:
        value = "" if entry.value is None else json.dumps(entry.value, ensure_ascii=False)
        typer.echo(f"{entry.key:<{widths[0]}}  {entry.origin:<{widths[1]}}  {value}".rstrip())
    for note in notes:
        typer.echo(f"note: {note}")


@app.command()
def check(
    config: ConfigArgument = None,
    profile: ProfileOption = None,
    device: Annotated[
        str | None,
        typer.Option("--device", metavar="NAME", help="Such as h100, m3-max-64. [default: this machine]"),
    ] = None,
    override: OverrideOption = None,
) -> None:
    """Report every fault of a config together, without training: keys, paths, tokenizer, sizes, memory."""
    from sconce.backend import load_backend
    from sconce.errors import ConfigError
    from sconce.planning.devices import named, of_backend
    from sconce.training.check import check_run

    loaded, notes = load_source(config, profile, override or [])
    name = str(config or f"preset {profile}")
    target = named(device) if device is not None else of_backend(load_backend("auto").device())
    faults = [f"{name}: {fault}" for fault in check_run(loaded, target)]
    if faults:
        raise ConfigError("\n".join(faults))
    for note in notes:
        typer.echo(f"note: {note}")
    typer.echo(f"{name}: no faults; fits {target.name}")


@app.command()
def convert(
    config: Annotated[Path, typer.Argument(help="A config of the earlier system: YAML, TOML or JSON.")],
    out: Annotated[Path | None, typer.Option("--out", help="TOML file to write. [default: print it]")] = None,
    override: OverrideOption = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is already there.")] = False,
) -> None:
    """Turn a config of the earlier system into one of ours, saying what was dropped or changed, and why."""
    from sconce.config.convert import convert_config
    from sconce.errors import ConfigError
    from sconce.files import write_atomic

    if out is not None and out.suffix != ".toml":
        raise ConfigError(f"--out {out}: found {out.suffix or 'no extension'}, expected .toml")
    if out is not None and out.exists() and not force:
        raise ConfigError(f"{out} exists: give --force to replace it, or another --out")
    text, notes = convert_config(config, Path.cwd() if out is None else out.parent, override or [])
    if out is None:
        typer.echo(text, nl=False)
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(out, text)
    for note in notes:
        typer.echo(note)
    typer.echo(f"{out}: written; every change is also in its first lines")


@app.command()
def docs() -> None:
    """Print the reference of every key: type, default, check and meaning."""
    from sconce.config import reference

    typer.echo(reference(), nl=False)
