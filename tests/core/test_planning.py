"""Devices, choices and the probe, against arithmetic done by hand."""

import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
from tiny import make_spec

import sconce.planning
from sconce.backend import ComputeOptions, DeviceInfo
from sconce.errors import ConfigError
from sconce.optim import OptimSpec
from sconce.planning.choice import best_choice, choose_micro_batch, divisors, smaller, with_fewer_logits
from sconce.planning.devices import known_names, named, of_backend
from sconce.planning.memory import Setting, step_memory
from sconce.planning.probe import BUDGET_SECONDS, matmul_flops_per_second
from sconce.planning.utilization import Yardstick
from sconce.training.recipe import default_loss_chunk

SETTING = Setting(
    spec=make_spec(num_layers=8, max_position_embeddings=256),
    optim=OptimSpec(),
    options=ComputeOptions(),
    framework="torch",
    compiled=False,
    batch_size=12,
    micro_batch_size=12,
    seq_len=256,
)


def sized(*sizes):
    return [replace(SETTING, micro_batch_size=size) for size in sizes]


@pytest.mark.parametrize(
    ("tokens", "vocab", "kind", "chunk"),
    [
        (3072, 4096, "cpu", 768),  # a quarter
        (1024, 4096, "cpu", 512),  # the least
        (512, 4096, "cpu", None),  # all that there is
        (8192, 50304, "metal", 512),  # 128 MiB are 667 tokens
        (8192, 50304, "cuda", 4096),  # 1 GiB is 5,336 tokens
        (8192, 32000, "cuda", None),  # 8,388 tokens
        (8192, 128256, "cuda", 2048),  # 2,093 tokens
        (7907, 4096, "cpu", 1977),  # a prime: a shorter last chunk, whatever is chosen
    ],
)
def test_chunks_of_the_loss(tokens, vocab, kind, chunk):
    assert default_loss_chunk(tokens, vocab, kind) == chunk


@pytest.mark.parametrize(("kind", "bound"), [("cpu", 2**27), ("cuda", 2**30)])
def test_chunks_of_the_loss_are_bounded_and_even(kind, bound):
    for tokens in (1024, 3000, 4096, 6144, 10240, 16384, 65536):
        for vocab in (300, 4096, 32000, 50304, 128256):
            chunk = default_loss_chunk(tokens, vocab, kind) or tokens
            assert chunk <= 512 or chunk * vocab * 4 <= bound
            assert tokens % chunk == 0 or chunk <= 1023, (tokens, vocab)  # half of less would be fewer than 512


def test_fewer_logits_before_fewer_sequences():
    """Half as many again and again, for as long as a product has 512 tokens."""
    tried = list(with_fewer_logits(replace(SETTING, micro_batch_size=12)))
    assert [setting.options.loss_chunk for setting in tried] == [None, 1536, 768, 512]
    peaks = [step_memory(setting).peak for setting in tried]
    assert peaks == sorted(peaks, reverse=True)
    assert choose_micro_batch(iter(tried), peaks[2]).setting == tried[2]


def test_every_device_has_what_a_plan_needs():
    families = tomllib.loads((Path(sconce.planning.__file__).parent / "devices.toml").read_text())
    assert families["prices_as_of"]
    assert families["prices_source"]
    for name in known_names():
        device = named(name)
        assert device.memory_bytes >= 8 * 2**30
        assert device.bandwidth
        assert device.source
        assert all(device.peak(kind) for kind in ("fp32", "bf16", "fp16"))
    wanted = {"a100-40", "a100-80", "h100", "h200", "l40s", "rtx-4090", "rtx-5090", "m3-max-64", "m1-8", "m4-pro-24"}
    assert wanted | {"m2-ultra-192"} <= set(known_names())


def test_apples_peaks_are_cores_times_lanes_times_clock():
    assert named("m3-max-64").peak("bf16") == pytest.approx(40 * 128 * 2 * 1.398e9, rel=0.01)


def test_an_unknown_device_names_the_nearest():
    with pytest.raises(ConfigError, match="did you mean m3-max-36, m3-max-48, m3-max-64"):
        named("m3-max")
    with pytest.raises(ConfigError, match="h100"):
        named("h10")


def test_a_device_is_known_by_its_drivers_name():
    info = DeviceInfo("torch", "2", "cuda", "NVIDIA H100 80GB HBM3", 79 * 2**30)
    assert of_backend(info).peak("bf16") == 989.4e12
    assert of_backend(info).memory_bytes == 79 * 2**30, "the memory is the driver's own figure"
    assert of_backend(replace(info, name="NVIDIA H100 of another kind")).peak("bf16") is None
    peaks = [of_backend(replace(info, name=f"NVIDIA {name}")).peak("bf16") for name in ("H100 PCIe", "H100 NVL")]
    assert peaks == [756.5e12, 835.5e12], "cards that share their chip's name with a faster one"


@pytest.mark.parametrize(
    ("name", "cores", "clock", "bandwidth"),
    [
        ("m3-max-36", 30, 1.398e9, 300),
        ("m3-max-96", 30, 1.398e9, 300),
        ("m3-max-48", 40, 1.398e9, 400),
        ("m4-max-36", 32, 1.578e9, 410),
        ("m4-max-64", 40, 1.578e9, 546),
    ],
)
def test_a_chip_with_fewer_cores_is_known_by_its_memory(name, cores, clock, bandwidth):
    device = named(name)
    assert device.peak("fp32") == pytest.approx(cores * 128 * 2 * clock, rel=0.01)
    assert device.bandwidth == bandwidth
    assert f"{cores} cores" in device.source
    chip = "Apple " + name.rsplit("-", 1)[0].replace("m", "M", 1).replace("-max", " Max")
    here = of_backend(DeviceInfo("mlx", "0", "metal", chip, device.memory_bytes))
    assert (here.peak("bf16"), here.bandwidth, here.framework) == (device.peak("bf16"), bandwidth, "mlx")


def test_micro_batches_divide_the_batch():
    assert divisors(12) == [12, 6, 4, 3, 2, 1]
    halved = [12]
    while (fewer := smaller(12, halved[-1])) is not None:
        halved.append(fewer)
    assert halved == [12, 6, 3, 1]
    assert smaller(10, 5) == 2


def test_the_largest_that_fits_is_chosen():
    room = step_memory(replace(SETTING, micro_batch_size=4)).peak
    choice = choose_micro_batch(iter(sized(12, 6, 4, 3, 2, 1)), room)
    assert (choice.setting.micro_batch_size, choice.fits) == (4, True)
    choice = choose_micro_batch(iter(sized(12, 6, 4, 3, 2, 1)), 1000)
    assert (choice.setting.micro_batch_size, choice.fits) == (1, False)


def test_recomputing_is_chosen_only_where_it_keeps_the_device_busy():
    block = ComputeOptions(recompute_every=1)
    roomy, tight = 2**40, step_memory(replace(SETTING, micro_batch_size=2)).peak

    def choose(room):
        kinds = [
            [replace(s, options=options) for s in sized(12, 6, 4, 3, 2, 1)] for options in (SETTING.options, block)
        ]
        return best_choice([choose_micro_batch(iter(kind), room) for kind in kinds]).setting

    assert choose(roomy).options.recompute_every == 0
    assert choose(tight).options.recompute_every == 1
    assert choose(tight).micro_batch_size > 2


@pytest.mark.parametrize("speed", [1e9, 1e11, 1e13, 1e15])
def test_the_probe_finds_the_best_rate_in_bounded_time(speed):
    """A device whose small products are slow, with an overhead a call."""
    spent = 0.0

    def seconds(size, repeats):
        nonlocal spent
        took = repeats * (2 * size**3 / speed + 5e-6)
        spent += took
        return took

    best = matmul_flops_per_second(seconds)
    assert best <= speed
    assert best > 0.8 * min(speed, 1e14)
    assert spent < BUDGET_SECONDS + 0.1


def test_utilization_is_work_done_over_what_was_possible():
    shares = Yardstick(flops_per_token=2_000, peak=1e9, measured=5e8).shares(100_000)
    assert shares == {"mfu": 0.2, "mfu_measured": 0.4}
    assert Yardstick(flops_per_token=2_000, peak=None, measured=5e8).shares(100_000) == {"mfu_measured": 0.4}
