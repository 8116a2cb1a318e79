"""Which pictures a report has, and in what units."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """One picture: `figures` of `metrics.jsonl` times `factor`, in `unit`. `noisy` ones are worth smoothing."""

    name: str
    title: str
    unit: str
    figures: tuple[str, ...]
    factor: float = 1.0
    noisy: bool = False


CHARTS = (
    Chart(name="loss", title="Loss", unit="nats per token", figures=("loss", "eval_loss"), noisy=True),
    Chart(name="bits_per_byte", title="Held-out bits per byte", unit="bits", figures=("bits_per_byte",)),
    Chart(name="learning_rate", title="Learning rate", unit="", figures=("lr",)),
    Chart(name="gradient_norm", title="Gradient norm, before clipping", unit="", figures=("grad_norm",), noisy=True),
    Chart(name="throughput", title="Throughput", unit="tokens per second", figures=("tokens_per_second",), noisy=True),
    Chart(name="mfu", title="MFU, of the vendor's peak", unit="%", figures=("mfu",), factor=100, noisy=True),
    Chart(
        name="mfu_measured",
        title="MFU, of a measured matrix product",
        unit="%",
        figures=("mfu_measured",),
        factor=100,
        noisy=True,
    ),
    Chart(name="memory", title="Peak memory", unit="GiB", figures=("memory_bytes",), factor=2**-30),
    Chart(name="skipped", title="Skipped updates", unit="so far", figures=("skipped",)),
)

HELD_OUT = frozenset({"eval_loss", "bits_per_byte"})  # measured now and then: drawn with a mark at each value
