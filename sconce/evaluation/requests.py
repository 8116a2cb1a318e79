"""What a benchmark asks of a model: how likely texts are, and what it writes. In batches, on any backend."""

from collections.abc import Iterable, Mapping, Sequence
from typing import cast

import numpy as np
from numpy.typing import NDArray

from sconce.backend import Batch
from sconce.errors import ConfigError, DataError
from sconce.generation.model import Prompt, TextModel
from sconce.generation.sampling import Sampling
from sconce.generation.score import batched
from sconce.log import log

LIMITS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")  # all say the same
MAX_NEW_TOKENS = 256  # where a task does not say, as the harness has it
UNSCORABLE = "a question cannot be scored"

Pair = tuple[Sequence[int], Sequence[int]]
"""Token ids of a context and of what continues it."""


def prefix_id(model: TextModel) -> int:
    """What a text without a context follows: as for the harness's own `hf` model, BOS where the tokenizer has it."""
    tokenizer = model.tokenizer
    return tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id


def text_ids(model: TextModel, text: str, whole: bool | None = None) -> list[int]:
    """Token ids of a task's text as the harness's own `hf` model makes them.

    Special tokens that the text spells are those tokens. A `whole` text gets what the tokenizer's post-processor puts
    around one, BOS above all; None: unless it spells that itself.
    """
    if whole is None:
        whole = not text.startswith(model.tokenizer.decode([prefix_id(model)], skip_special=False))
    return model.tokenizer.encode_markup(text, whole)


def log_likelihoods(model: TextModel, pairs: Sequence[Pair], batch_size: int) -> list[tuple[float, bool]]:
    """Of each continuation: its natural log-probability, and whether greedy decoding would write it.

    A context is cut on the left to fit the model's positions, and a warning says how many were. Raises DataError when a
    continuation alone does not, and for an empty context; an empty continuation is certain.
    """
    positions = model.spec.max_position_embeddings
    _warn_of_cut([len(context) + len(continuation) - 1 > positions for context, continuation in pairs], positions)
    for context, continuation in pairs:
        if not context:
            raise DataError(f"{UNSCORABLE}: a context of no tokens")
        if len(continuation) > positions:
            raise DataError(f"a continuation of {len(continuation)} tokens; the model has {positions} positions")
    found: list[tuple[float, bool]] = [(0.0, True)] * len(pairs)
    asked = [index for index, (_, continuation) in enumerate(pairs) if continuation]
    longest_first = sorted(asked, key=lambda index: -len(pairs[index][0]) - len(pairs[index][1]))
    for indices in batched(longest_first, batch_size):
        batch = _pad([pairs[index] for index in indices], positions)
        nats_BT, hits_BT = model.model.score(batch)
        scored_BT = batch.targets >= 0
        for row, index in enumerate(indices):
            scored_T = scored_BT[row]
            found[index] = (-float(nats_BT[row].sum(dtype=np.float64)), bool(hits_BT[row][scored_T].all()))
    return found


def _pad(pairs: Sequence[Pair], positions: int) -> Batch:
    """Inputs and targets (batch, longest); only continuations are targets, and what is after the end is not."""
    rows = [[*context, *continuation][-(positions + 1) :] for context, continuation in pairs]
    width = max(map(len, rows)) - 1
    inputs_BT: NDArray[np.int32] = np.zeros((len(rows), width), np.int32)
    targets_BT: NDArray[np.int32] = np.full((len(rows), width), -1, np.int32)
    for index, (row, (_, continuation)) in enumerate(zip(rows, pairs, strict=True)):
        inputs_BT[index, : len(row) - 1] = row[:-1]
        targets_BT[index, len(row) - 1 - len(continuation) : len(row) - 1] = continuation
    return Batch(inputs_BT, targets_BT)


def write_continuations(
    model: TextModel, asked: Iterable[tuple[str, Mapping[str, object]]], batch_size: int, seed: int
) -> list[str]:
    """What continues each text, by its own `generation_kwargs`; drawn if they say `do_sample`, or only a temperature.

    A text is cut on the left so that all that is asked for fits, and a warning says how many were. Raises ConfigError
    for a key or a value that has no meaning here.
    """
    prompts = [_prompt(model, text, options, seed, index) for index, (text, options) in enumerate(asked)]
    _warn_of_cut([cut for _, cut in prompts], model.spec.max_position_embeddings)
    return [done.text for done in model.complete([prompt for prompt, _ in prompts], rows=batch_size)]


def _warn_of_cut(cut: Sequence[bool], positions: int) -> None:
    if any(cut):
        log.warning(
            "%d of %d questions do not fit the model's %d positions and lost their beginning; "
            "fewer examples before them might keep it",
            sum(cut),
            len(cut),
            positions,
        )


def _prompt(model: TextModel, text: str, options: Mapping[str, object], seed: int, index: int) -> tuple[Prompt, bool]:
    """The prompt, and whether its text was cut."""
    left = dict(options)
    limits = [value for name in LIMITS if (value := left.pop(name, None)) is not None]
    limit = cast(int, limits[0]) if limits else MAX_NEW_TOKENS
    room = model.spec.max_position_embeddings - limit
    if room < 1:
        raise ConfigError(
            f"max_gen_toks: the task asks for {limit} tokens, and the model has {limit + room} positions, at least one "
            "for what they continue: set generation_kwargs.max_gen_toks lower in the task"
        )
    until = cast(str | list[str] | None, left.pop("until", None))
    stop = () if until is None else (until,) if isinstance(until, str) else tuple(until)
    if "" in stop:
        raise ConfigError("generation_kwargs.until: found an empty text: take it out of the task")
    sampling = _sampling(left)
    if left:
        raise ConfigError(f"generation_kwargs.{', '.join(left)}: not known here: take it out of the task")
    ids = text_ids(model, text)
    kept = tuple(ids[-room:] or [prefix_id(model)])
    prompt = Prompt(text=kept, max_tokens=limit, sampling=sampling, seed=seed, choice=index, stop=stop)
    return prompt, len(ids) > room


def _sampling(left: dict[str, object]) -> Sampling:
    """What the options say of sampling, taken out of them.

    As the harness has it, a temperature alone means sampling, and with neither the likeliest token is taken, whatever
    else is said; as transformers has it, sampling without a temperature is at 1.
    """
    temperature = cast(float | None, left.pop("temperature", None))
    do_sample = cast(bool | None, left.pop("do_sample", None))
    if do_sample and temperature == 0:
        raise ConfigError("generation_kwargs.temperature: found 0 with do_sample: true, expected more, or false")
    if do_sample is None:
        do_sample = bool(temperature)
    return Sampling(
        temperature=(1.0 if temperature is None else temperature) if do_sample else 0.0,
        top_k=cast(int, left.pop("top_k", 0)),
        top_p=cast(float, left.pop("top_p", 1.0)),
        min_p=cast(float, left.pop("min_p", 0.0)),
        repetition_penalty=cast(float, left.pop("repetition_penalty", 1.0)),
    )
