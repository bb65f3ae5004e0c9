"""The CPU engine: C++ kernels, and calls that are divided into tiles for them.

It registers its kernels where the C++ library loads; without it every operator runs its definition.
"""

from __future__ import annotations

import torch

from .._plan import costs
from . import library


def register() -> str | None:
    """Implements the operators for the CPU; the reason if the C++ library is not there."""
    reason = library.load()
    if reason is not None:
        return reason
    # Imported now, since its modules use what the library has defined.
    from . import (
        conv,
        correlate,
        medians,
        overlap,
        peaks,
        score_grads,
        scores,
        steps,
        weighted,
        weighted_lncc,
        weighted_moments,
    )

    none = torch.empty(0)
    costs.name_cpu(steps.BYTE_LOOPS[steps.byte_loop(none)], steps.has_own_transforms(none))
    conv.register()
    correlate.register()
    scores.register()
    score_grads.register()
    weighted.register()
    weighted_lncc.register()
    weighted_moments.register()
    medians.register()
    overlap.register()
    peaks.register()
    return None
