"""The order of the gallery: that of the numbers with which names of examples begin."""

from __future__ import annotations


class ByNumber:
    """sphinx-gallery makes it with the folder of the examples, and calls it with a name."""

    def __init__(self, folder: str) -> None:
        del folder

    def __call__(self, name: str) -> int:
        return int(name.partition("_")[0])
