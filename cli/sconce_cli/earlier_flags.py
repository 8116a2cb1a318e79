"""Flags of the earlier system's `orchestrate` that cannot be had, each with what to type instead."""

from collections.abc import Mapping, Sequence

RETIRED: Mapping[str, str] = {
    "--tokenizer-seed": "training a tokenizer draws nothing at random: leave it out",
    "--shuffle-buffer": "every epoch is shuffled as a whole: leave it out",
}


def refuse_retired(words: Sequence[str]) -> None:
    """Raise ConfigError for such a flag among the words of a command line, which is refused before it is parsed."""
    from sconce.errors import ConfigError

    if "orchestrate" not in words[:1]:
        return
    for word, following in zip(words, [*words[1:], "--"], strict=True):
        name, _, value = word.partition("=")
        if name in RETIRED:
            raise ConfigError(f"{name}: {RETIRED[name]}")
        if name == "--tensorboard" and (value or not following.startswith("-")):
            raise ConfigError("--tensorboard takes no folder: its files go to tensorboard/ in the run folder")
