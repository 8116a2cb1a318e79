"""`loss.png`: training and held-out loss over steps."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from sconce.png import png_bytes


def loss_png(records: Sequence[dict[str, float]]) -> bytes:
    """The records of `metrics.jsonl` as a PNG; the thick line is the running mean of the thin one."""
    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    axes = figure.subplots()
    steps = [record["step"] for record in records if "loss" in record]
    losses = [record["loss"] for record in records if "loss" in record]
    axes.plot(steps, losses, color="#9db7d5", linewidth=0.8)
    axes.plot(steps, running_mean(losses), color="#1f5a9e", linewidth=2, label="training")
    evaluations = [(record["step"], record["eval_loss"]) for record in records if "eval_loss" in record]
    if evaluations:
        axes.plot(*zip(*evaluations, strict=True), "o-", color="#c4511d", markersize=4, label="held-out")
        step, loss = evaluations[-1]
        axes.annotate(f"{loss:.3f}", (step, loss), textcoords="offset points", xytext=(-4, 8), ha="right")
    axes.set_xlabel("step")
    axes.set_ylabel("loss (nats per token)")
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    return png_bytes(figure)


def running_mean(values: Sequence[float], decay: float = 0.75) -> list[float]:
    """Exponential moving average without a bias towards the first value (Kingma & Ba 2015, section 3)."""
    means: list[float] = []
    total = weight = 0.0
    for value in values:
        total, weight = decay * total + value, decay * weight + 1.0
        means.append(total / weight)
    return means
