"""The picture of a build: how long its documents are, and how often its tokens occur."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sconce.data.examine import SplitStats
from sconce.files import write_atomic
from sconce.png import png_bytes

_COLOURS = {"train": "#1f5a9e", "validation": "#c4511d"}
_BINS_PER_DECADE = 12


def plot_stats(splits: Sequence[SplitStats], path: Path) -> None:
    """Draw document lengths in logarithmic bins and token frequencies by rank, as a PNG."""
    figure = Figure(figsize=(10, 4.2), dpi=120, layout="constrained")
    lengths, frequencies = figure.subplots(1, 2)
    for split in splits:
        _draw_lengths(lengths, split)
        _draw_frequencies(frequencies, split)
    lengths.set(xscale="log", yscale="log", xlabel="document length (tokens)", ylabel="documents")
    frequencies.set(xscale="log", yscale="log", xlabel="rank of token", ylabel="occurrences")
    for axes in (lengths, frequencies):
        axes.grid(alpha=0.25)
        axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.2)
    write_atomic(path, png_bytes(figure))


def _draw_lengths(axes: Axes, split: SplitStats) -> None:
    lengths = np.maximum(np.fromiter(split.length_counts.keys(), float), 1)  # an empty document has a place too
    counts = np.fromiter(split.length_counts.values(), float)
    if not len(lengths):
        return
    low, high = math.floor(math.log10(lengths.min())), math.ceil(math.log10(lengths.max() + 1))
    # Below 10 tokens a bin finer than one integer would be empty or full by chance.
    count = (high - low) * _BINS_PER_DECADE + 1
    edges = np.unique(np.array([round(10 ** (low + (high - low) * bin / (count - 1))) for bin in range(count)])) - 0.5
    heights, _ = np.histogram(lengths, edges, weights=counts)
    label = f"{split.split}: {split.documents:,} documents, median {split.quantiles[4]:,}"
    axes.stairs(heights, edges, fill=True, alpha=0.35, color=_COLOURS[split.split])
    axes.stairs(heights, edges, linewidth=1.4, color=_COLOURS[split.split], label=label)


def _draw_frequencies(axes: Axes, split: SplitStats) -> None:
    counts = np.sort(split.token_counts[split.token_counts > 0])[::-1]
    label = f"{split.split}: {len(counts):,} of {len(split.token_counts):,} ids occur"
    axes.plot(np.arange(1, len(counts) + 1), counts, linewidth=1.6, color=_COLOURS[split.split], label=label)
