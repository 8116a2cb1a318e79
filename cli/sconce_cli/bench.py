"""`sconce bench`: how fast a config trains on this machine."""

from typing import TYPE_CHECKING, Annotated

import typer

from sconce_cli.options import BackendOption, ConfigOption, Hardware, OverrideOption, ProfileOption, load_source

if TYPE_CHECKING:
    from sconce.training.bench import Bench, Spread


def bench(
    config: ConfigOption = None,
    profile: ProfileOption = None,
    backend: BackendOption = Hardware.auto,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Updates to time, after a warm-up.")] = 20,
    override: OverrideOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")] = False,
) -> None:
    """Time a config's training steps, phase by phase; nothing of the run is kept."""
    import json

    from sconce.training.bench import bench_config
    from sconce_cli.console import make_reporter

    loaded, _ = load_source(config, profile, override or [])
    reporter = make_reporter(quiet=as_json, as_json=False)
    found = bench_config(loaded, hardware=backend.value, steps=steps, reporter=reporter)
    typer.echo(json.dumps(found.as_object()) if as_json else "\n".join(as_text(found)))


def as_text(found: "Bench") -> list[str]:
    """The figures for a person, as lines."""
    from sconce_cli.console import describe_utilization

    rate, noise = found.tokens_per_second, found.step_ms.high - found.step_ms.low
    optimizer = f"{found.optimizer_ms:.1f} ms" if found.optimizer_ms > noise else f"less than {noise:.1f} ms, the noise"
    waited = found.data_wait_ms.median / found.step_ms.median
    return [
        "",
        f"{found.steps} steps of {found.tokens_per_step:,} tokens, {found.micro_batch_size} sequences at a time "
        "(median, and quartiles)",
        f"  throughput           {rate.median:,.0f} tokens/s ({rate.low:,.0f} to {rate.high:,.0f})",
        f"  step                 {_ms(found.step_ms)}",
        f"    forward, backward  {found.forward_backward_ms:.1f} ms",
        f"    optimizer          {optimizer}",
        f"  host, processor time {_ms(found.host_ms)}",
        f"  data, meanwhile      {_ms(found.data_ms)}",
        f"    waited for it      {_ms(found.data_wait_ms, 3)}, {waited:.2%} of the step",
        f"  the first step took  {found.first_step_seconds:.1f} s",
        f"  peak memory          {found.memory_bytes / 2**20:,.0f} MiB",
        f"  {describe_utilization(found.utilization)}",
    ]


def _ms(spread: "Spread", digits: int = 1) -> str:
    return f"{spread.median:.{digits}f} ms ({spread.low:.{digits}f} to {spread.high:.{digits}f})"
