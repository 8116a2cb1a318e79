"""`sconce plan`: what a config needs and takes on a device."""

from typing import TYPE_CHECKING, Annotated

import typer

from sconce_cli.options import BackendOption, ConfigOption, Hardware, OverrideOption, ProfileOption, load_source

if TYPE_CHECKING:
    from sconce.backend import Hardware as Choosable
    from sconce.config import RunConfig
    from sconce.planning.choice import Choice
    from sconce.training.plan import Estimate, Plan

PARTS = {
    "weights": "weights",
    "optimizer": "optimizer's moments",
    "gradients": "gradients",
    "casts": "weights in {precision}",
    "activations": "activations",
    "logits": "logits and loss",
    "working": "backward of a block",
    "peak": "peak of a step",
}
PACKED_NOTE = "         attention is counted over whole rows: that of packed documents takes less, as training will say"


def plan(
    config: ConfigOption = None,
    profile: ProfileOption = None,
    device: Annotated[
        str | None,
        typer.Option("--device", metavar="NAME", help="Such as h100, a100-80, m3-max-64. [default: this machine]"),
    ] = None,
    backend: BackendOption = Hardware.auto,
    mfu: Annotated[
        float | None, typer.Option("--mfu", min=0.001, max=1, help="Share of the speed to assume, e.g. 0.4.")
    ] = None,
    price: Annotated[float | None, typer.Option("--price", min=0, help="Dollars an hour.")] = None,
    override: OverrideOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")] = False,
) -> None:
    """Parameters, FLOPs, memory by part, time and cost of a run, without running it."""
    import json

    from sconce.errors import ConfigError
    from sconce.planning.devices import named
    from sconce.training.plan import plan_run

    if device is not None and backend is not Hardware.auto:
        raise ConfigError("--backend: is for this machine; a --device has its own: give one of them")
    loaded, _ = load_source(config, profile, override or [])
    if device is None or device == "cpu":
        made = plan_here(loaded, "cpu" if device == "cpu" else backend.value, mfu=mfu, price=price)
    else:
        made = plan_run(loaded, named(device), mfu=mfu, price=price)
    typer.echo(json.dumps(made.as_object()) if as_json else "\n".join(as_text(made)))


def plan_here(
    config: "RunConfig", hardware: "Choosable", *, mfu: float | None = None, price: float | None = None
) -> "Plan":
    """The plan for a backend's device on this machine, whose matrix products are measured."""
    from sconce.backend import load_backend
    from sconce.config import precision
    from sconce.planning.devices import of_backend
    from sconce.planning.probe import matmul_flops_per_second
    from sconce.training.plan import plan_run

    here, kind = load_backend(hardware), precision(config)
    measured = matmul_flops_per_second(lambda size, repeats: here.matmul_seconds(kind, size, repeats))
    return plan_run(config, of_backend(here.device()), measured=measured, mfu=mfu, price=price)


def as_text(plan: "Plan") -> list[str]:
    """The plan for a person, as lines."""
    from sconce.planning.devices import USABLE
    from sconce.planning.utilization import tera
    from sconce.training.plan import non_embedding

    spec, flops, device = plan.spec, plan.flops, plan.device
    peak = device.peak(plan.precision)
    speed = f"{tera(peak)} {plan.precision} dense ({device.source})" if peak else "no vendor's peak known"
    lines = [
        f"model    {spec.num_params:,} parameters, {non_embedding(spec):,} without embedding and head",
        f"FLOPs    {flops.training:,} a token, forward and backward: 3 x ({flops.projections:,} projections + "
        f"{flops.attention:,} attention + {flops.head:,} head)",
        *([PACKED_NOTE] if plan.configured.setting.packed else []),
        f"device   {device.name}: {_gib(device.memory_bytes)}, {USABLE[device.kind]:.0%} of it planned with; {speed}",
        *([f"stages   {plan.stages.describe()}; memory is that of the longest"] if len(plan.stages.stages) > 1 else []),
        "",
        *memory_table(plan),
        "",
        f"key/value cache of one sequence of {spec.max_position_embeddings}, in generation: {_gib(plan.cache_bytes)}",
        "set: " + ", ".join(f"{key} = {_toml(value)}" for key, value in plan.keys.items()),
        "",
        *estimate_lines(plan),
    ]
    if not plan.configured.fits:
        lines.append("as configured it does not fit this device")
    if not plan.chosen.fits:
        lines.append("not even one sequence with every block recomputed fits: a smaller model or shorter sequences")
    return lines


def memory_table(plan: "Plan") -> list[str]:
    """A row a part, a column a choice."""
    from dataclasses import asdict

    choices = [plan.configured, plan.chosen]
    bytes_of = [{**asdict(choice.memory), "peak": choice.memory.peak} for choice in choices]
    rows = [
        ["", "as configured", "chosen"],
        ["micro-batch", *(_micro(choice) for choice in choices)],
        ["blocks recomputed", *(_recomputed(choice) for choice in choices)],
        ["loss_chunk", *(str(choice.setting.options.loss_chunk or "all at once") for choice in choices)],
    ]
    for key, label in PARTS.items():
        if key != "casts" or plan.precision != "fp32":
            rows.append([label.format(precision=plan.precision), *(_gib(parts[key]) for parts in bytes_of)])
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return [
        "  ".join([row[0].ljust(widths[0]), row[1].rjust(widths[1]), row[2].rjust(widths[2])]).rstrip() for row in rows
    ]


def estimate_lines(plan: "Plan") -> list[str]:
    """Speed, time and cost, with what they rest on."""
    from sconce.planning.devices import price_basis
    from sconce.planning.utilization import tera

    estimate = plan.chosen_estimate
    if estimate is None:
        return []
    lines = [
        f"assuming {estimate.mfu:.0%} MFU, of {estimate.speed_is}, {tera(estimate.speed)} (an assumption, not a "
        "measurement: `sconce bench` measures)",
        f"  as configured  {_estimate(plan.configured_estimate)}",
        f"  chosen         {_estimate(estimate)}",
    ]
    if plan.total_tokens is None:
        lines.append("  no time for the whole run: scheduler.total_epochs needs the text; set total_steps to see it")
    else:
        lines[0] = f"{plan.total_tokens:,} tokens, {lines[0]}"
    if estimate.cost is not None and estimate.price == plan.device.price:
        lines.append(f"  at {estimate.price} dollars an hour, {price_basis()}; --price sets another")
    return lines


def _estimate(estimate: "Estimate | None") -> str:
    if estimate is None:
        return "unknown"
    text = f"{estimate.tokens_per_second:,.0f} tokens/s"
    if estimate.hours is not None:
        text += f", {_duration(estimate.hours)}"
    return text if estimate.cost is None else f"{text}, {estimate.cost:,.2f} dollars"


def _duration(hours: float) -> str:
    if hours >= 48:
        return f"{hours / 24:.1f} days"
    return f"{hours:.1f} hours" if hours >= 1 else f"{hours * 60:.1f} minutes"


def _micro(choice: "Choice") -> str:
    setting = choice.setting
    return f"{setting.micro_batch_size} of {setting.batch_size}"


def _recomputed(choice: "Choice") -> str:
    every = choice.setting.options.recompute_every
    return {0: "none", 1: "all"}.get(every, f"one in {every}")


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 / 10 else f"{size / 2**20:.1f} MiB"


def _toml(value: object) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value)
