"""What a call's plan says."""

from __future__ import annotations

from dataclasses import dataclass

from .shapes import Ints
from .tiling import Tiling


@dataclass(frozen=True)
class Plan:
    """How one call will be computed: what `plan` returns.

    Sizes are those of a tile, one for each window axis; bytes depend on the dtype.

    Attributes
    ----------
    method : str
        ``"direct"`` or ``"fft"``.
    tile : tuple of int
        Positions that a tile covers, ``(*positions)``.
    transform : tuple of int
        Elements of a tile along each window axis: the length of its transforms.
    parts : tuple of int
        Parts that a large template is divided into along each window axis, so that its transforms
        stay small.
    folds : tuple of int
        Along each window axis, how many times fewer positions are transformed back than a transform
        has: a stride, or 1 where all are.
    tiles : int
        Tiles of one item of the input.
    batch : int
        Tiles that are computed at once.
    templates : int
        Templates whose scores are computed at once.
    bytes : int
        Scratch of one batch, in bytes; input and result are not counted.
    cost : float
        Predicted time in milliseconds on the two cores that the model was fitted on. Elsewhere
        only the ratio of two plans' costs is meaningful.
    large : bool
        Whether tiles are so large that their transforms replace them, and that threads share these
        instead of holding tiles of their own, unless they are lines.
    kept : bool
        Whether the spectra of templates are kept for all tiles, or made again for each batch.
    """

    method: str
    tile: Ints
    transform: Ints
    parts: Ints
    folds: Ints
    tiles: int
    batch: int
    templates: int
    bytes: int
    cost: float
    large: bool = False
    kept: bool = True


def sizes_of(tiling: Tiling) -> tuple[Ints, Ints, Ints, Ints]:
    """The sizes of tiles in the order of a plan's."""
    return tiling.outputs, tiling.length, tiling.parts, tiling.folds
