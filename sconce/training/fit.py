"""What of a run depends on the device's memory: its micro-batch, and how the loss is cut."""

from collections.abc import Iterator
from dataclasses import asdict

from sconce.backend import DeviceInfo
from sconce.checkpoint.load import LoadedCheckpoint
from sconce.config import (
    RunConfig,
    config_from,
    differences,
    given_micro_batch,
    micro_batch_size,
    ramp,
    to_json,
    with_micro_batch,
)
from sconce.planning.choice import choose_micro_batch, divisors, with_fewer_logits
from sconce.planning.devices import Device, of_backend
from sconce.planning.memory import MLX_CPU_LANES, Setting, step_memory
from sconce.spec import ModelSpec
from sconce.training.recipe import attention_kind, make_compute, make_optim

# Keys that change what a micro-batch needs: a resumed run that changes one chooses anew.
NEEDS = ("precision", "activation_checkpointing", "attention_backend", "compile", "loss_chunk")
GIB = 2**30


def make_setting(config: RunConfig, spec: ModelSpec, device: Device) -> Setting:
    """What the memory of a run's steps depends on, where they are largest: shorter rows are never more tokens."""
    options, stages = make_compute(config, spec, device.kind), ramp(config)
    return Setting(
        spec=spec,
        optim=make_optim(config),
        options=options,
        framework=device.framework,
        compiled=options.compile if options.compile is not None else device.kind != "cpu",
        batch_size=stages.largest_batch,
        micro_batch_size=micro_batch_size(config),
        seq_len=stages.longest,
        packed=config.data.packing == "bestfit",
        lanes=MLX_CPU_LANES if (device.framework, device.kind) == ("mlx", "cpu") else 1,
    )


def settings_by_size(config: RunConfig, spec: ModelSpec, device: Device, given: int | None = None) -> Iterator[Setting]:
    """The setting with each micro-batch that divides the batch, the largest first; or with the one that is given.

    Where the config leaves the loss's chunks open, each also with smaller ones: they take time, but may make room.
    """
    for size in divisors(ramp(config).largest_batch) if given is None else (given,):
        setting = make_setting(with_micro_batch(config, size), spec, device)
        yield from with_fewer_logits(setting) if config.runtime.loss_chunk is None else (setting,)


def fit_to_device(
    config: RunConfig, spec: ModelSpec, info: DeviceInfo, loaded: LoadedCheckpoint | None
) -> tuple[RunConfig, str]:
    """The config with micro-batch and loss_chunk settled, and a line that says how.

    What the config leaves open follows from the device's whole memory, or is the checkpoint's where the device and
    all that matters are the same: a resumed run does what it would have done.
    """
    device = of_backend(info)
    given, before = given_micro_batch(config), _as_before(config, info, loaded)
    # An explicit micro-batch stands; the chunk that was in use goes with the recorded one.
    if before is not None and given in (None, micro_batch_size(before)):
        size, chunk, why = micro_batch_size(before), before.runtime.loss_chunk, "as before"
    else:
        choice = choose_micro_batch(settings_by_size(config, spec, device, given), device.usable_bytes)
        size, chunk = choice.setting.micro_batch_size, choice.setting.options.loss_chunk
        why = "the most that fits" if choice.fits else "the least there is"
        if given is not None:
            why = "as the config says"
    settled = with_micro_batch(config, size, chunk or 0)
    return settled, _describe(make_setting(settled, spec, device), device, why)


def _describe(setting: Setting, device: Device, why: str) -> str:
    needed = step_memory(setting).peak
    line = (
        f"micro-batch: {setting.micro_batch_size} of {setting.batch_size} sequences at a time, {why}; estimated "
        f"{needed / GIB:.2f} of {device.memory_bytes / GIB:.0f} GiB"
    )
    if needed > device.usable_bytes:
        line += ", which may not fit: see `sconce plan`"
    return line


def _as_before(config: RunConfig, info: DeviceInfo, loaded: LoadedCheckpoint | None) -> RunConfig | None:
    """The checkpoint's config, if it was written on the same device and nothing that needs memory has changed."""
    if loaded is None or any(
        loaded.record.hardware.get(key) != value for key, value in asdict(info).items() if key != "version"
    ):
        return None
    needs = {f"runtime.{name}" for name in NEEDS}
    if any(change.key in needs for change in differences(loaded.run_config, to_json(config))):
        return None
    before = config_from(loaded.run_config, str(loaded.path / "run.json"))
    # ATTN_BACKEND, which no config holds, chooses as well.
    if loaded.record.hardware.get("attention", before.runtime.attention_backend) != attention_kind(config):
        return None
    return before
