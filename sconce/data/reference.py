"""Real text that every machine with Python already has: the language reference behind `help()`."""

from pydoc_data.topics import topics


def python_reference() -> str:
    """The topics of CPython's language reference as one text.

    Topics quote one another at length; each paragraph is kept once, or held-out text would be in training too.
    """
    seen: set[str] = set()
    kept: list[str] = []
    for name in sorted(topics):
        for paragraph in topics[name].split("\n\n"):
            words = " ".join(paragraph.split())
            if words and words not in seen:
                seen.add(words)
                kept.append(paragraph.strip("\n"))
    return "\n\n".join(kept) + "\n"
