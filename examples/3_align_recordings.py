"""
Align two recordings
====================

:func:`torchcorr.estimate_shift` finds the lag between two recordings of one event, to a fraction of
a sample, whatever their gain and baseline.
"""

# %%
# Two devices record the same electrocardiogram (from PyWavelets, 1024 samples). The second starts
# 137.4 samples later, between two samples of the first, and has another gain, another baseline, a
# slow drift and noise.

import numpy as np
import pywt
import torch
from scipy.interpolate import CubicSpline

import torchcorr
from torchcorr.plot import draw_alignment

source = pywt.data.ecg().astype(np.float64)
delay, length = 137.4, 640
first = source[:700]

time = delay + np.arange(length)
noise = np.random.default_rng(20).normal(scale=6.0, size=length)
drift = 12.0 * np.sin(2 * np.pi * np.arange(length) / 500.0)
second = 0.6 * CubicSpline(np.arange(len(source)), source)(time) + 40.0 + drift + noise

# %%
# The shift is what must be added to the time of the second recording to align it with the first.

shift = torchcorr.estimate_shift(torch.from_numpy(first), torch.from_numpy(second), ndim=1)

lag = shift.shift.item()
print("3. Align two recordings of one heart: other start, gain, baseline, drift and noise")
print(
    f"   lag found {lag:.2f} samples, true {delay:.2f}: off by {abs(lag - delay):.2f} samples, "
    f"score {shift.score.item():.3f}"
)

# %%
# :func:`torchcorr.plot.draw_alignment` draws both recordings before and after the shift.

figure = draw_alignment(
    first,
    second,
    shift,
    names=("recording A", "recording B"),
    title=f"Two recordings of one electrocardiogram (true lag {delay:.2f})",
)
