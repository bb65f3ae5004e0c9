"""The operators: what is computed, its shapes, its derivatives and its batching rules.

An engine implements operators for its device; every other device runs the definition.
"""

from .conv import conv, conv_input_grad, conv_weight_grad
from .correlate import correlate, correlate_input_grad, correlate_template_grad
from .lncc import lncc, lncc_grads
from .medians import medians
from .overlap import overlap_scores
from .peaks import pick_lowest, pick_peaks
from .registry import Operator, is_plain
from .scores import ncc, ncc_grads, standardise, standardise_grad
from .weighted import weighted_ncc, weighted_ncc_grads
from .weighted_lncc import weighted_lncc, weighted_lncc_grads
from .weighted_moments import weighted_moments
from .windows import (
    local_std,
    local_std_prepare_grads,
    window_combine,
    window_moments,
    window_spread,
    window_sum,
)

__all__ = [
    "OPERATORS",
    "Operator",
    "conv",
    "conv_input_grad",
    "conv_weight_grad",
    "correlate",
    "correlate_input_grad",
    "correlate_template_grad",
    "is_plain",
    "lncc",
    "lncc_grads",
    "local_std",
    "local_std_prepare_grads",
    "medians",
    "ncc",
    "ncc_grads",
    "overlap_scores",
    "pick_lowest",
    "pick_peaks",
    "standardise",
    "standardise_grad",
    "weighted_lncc",
    "weighted_lncc_grads",
    "weighted_moments",
    "weighted_ncc",
    "weighted_ncc_grads",
    "window_combine",
    "window_moments",
    "window_spread",
    "window_sum",
]

OPERATORS: tuple[Operator, ...] = (
    correlate,
    correlate_input_grad,
    correlate_template_grad,
    conv,
    conv_input_grad,
    conv_weight_grad,
    standardise,
    standardise_grad,
    ncc,
    ncc_grads,
    weighted_ncc,
    weighted_ncc_grads,
    weighted_moments,
    window_sum,
    window_spread,
    window_moments,
    window_combine,
    local_std,
    local_std_prepare_grads,
    lncc,
    lncc_grads,
    weighted_lncc,
    weighted_lncc_grads,
    overlap_scores,
    pick_peaks,
    pick_lowest,
    medians,
)
