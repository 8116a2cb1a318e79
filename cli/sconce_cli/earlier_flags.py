"""Programs of the earlier system, and flags of its `orchestrate`, that cannot be had: what to type instead."""

from collections.abc import Mapping, Sequence

RETIRED: Mapping[str, str] = {
    "--tokenizer-seed": "training a tokenizer draws nothing at random: leave it out",
    "--shuffle-buffer": "every epoch is shuffled as a whole: leave it out",
}
PROGRAMS: Mapping[str, str] = {
    "preprocess": "is `sconce data clean --input FOLDER --out FOLDER` here; token shards are made by the run, or "
    "before it by `sconce data prepare`",
    "train-streaming": "is `sconce train` here, which streams where the config says data.streaming",
}


def refuse_retired(words: Sequence[str]) -> None:
    """Raise ConfigError for one of these among the words of a command line, which is refused before it is parsed."""
    from sconce.errors import ConfigError

    if words and words[0] in PROGRAMS:
        raise ConfigError(f"{words[0]}: {PROGRAMS[words[0]]}")
    if "orchestrate" not in words[:1]:
        return
    for word, following in zip(words, [*words[1:], "--"], strict=True):
        name, _, value = word.partition("=")
        if name in RETIRED:
            raise ConfigError(f"{name}: {RETIRED[name]}")
        if name == "--tensorboard" and (value or not following.startswith("-")):
            raise ConfigError("--tensorboard takes no folder: its files go to tensorboard/ in the run folder")
