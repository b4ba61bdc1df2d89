"""Equations and sources as the documentation of a class gives them."""

import inspect


def documented(kind: type) -> tuple[str, str]:
    """First paragraph of a class's documentation, and its paragraph that begins with `Source:`, each in one line."""
    first, *rest = inspect.cleandoc(kind.__doc__ or "").split("\n\n")
    sources = [part.removeprefix("Source: ") for part in rest if part.startswith("Source: ")]
    return " ".join(first.split()), " ".join(" ".join(sources).split())
