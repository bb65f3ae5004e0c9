"""
Learn a delay
=============

:func:`torchcorr.soft_shift` is differentiable everywhere, so a filter before it can be trained
until the delays that it measures are right.
"""

# %%
# Pairs of signals with known delays. A hum that both share hides what is delayed: as it has no
# delay, the measured ones are drawn to 0.

import math

import torch
from matplotlib.figure import Figure

import torchcorr

generator = torch.Generator().manual_seed(0)
count, length, reach = 24, 200, 8
source = torch.randn(count, length + 2 * reach, generator=generator)
delays = torch.randint(-reach + 1, reach, (count,), generator=generator)
first = source[:, reach : reach + length]
second = torch.stack(
    [row[reach + k :][:length] for row, k in zip(source, delays.tolist(), strict=True)]
)
phase = 2 * math.pi * torch.rand(count, 1, generator=generator)
hum = 4 * torch.sin(torch.arange(length) * (2 * math.pi / 13) + phase)
first, second = first + hum, second + hum

# %%
# Both signals pass one filter of 15 taps. It begins as no filter at all, and learns to remove the
# hum.

taps = torch.zeros(15)
taps[7] = 1
taps.requires_grad_()
descent = torch.optim.Adam([taps], lr=0.01)


def measured():
    filtered = (torchcorr.correlate(v, taps, ndim=1) for v in (first, second))
    return torchcorr.soft_shift(*filtered, ndim=1, max_shift=reach)[:, 0]


course, before = [], measured().detach()
for _ in range(60):
    loss = (measured() - delays).square().mean()
    course.append(loss.item() ** 0.5)
    descent.zero_grad()
    loss.backward()
    descent.step()
after = measured().detach()
print("11. Learn a filter that measures delays rightly")
print(f"   root mean square error {course[0]:.2f} samples before, {course[-1]:.2f} after")

# %%
# The filter lets hardly anything pass at the frequency of the hum.

figure = Figure(figsize=(9.6, 3.2), dpi=120, layout="constrained")
panels = figure.subplots(1, 3)
for values, label in ((before, "before"), (after, "after")):
    panels[0].plot(delays, values, ".", label=label)
panels[0].set(xlabel="true delay (samples)", ylabel="measured delay (samples)")
panels[0].legend(frameon=False)
panels[1].semilogy(course)
panels[1].set(xlabel="step", ylabel="root mean square error (samples)")
response = torch.fft.rfft(taps.detach(), 512).abs()
panels[2].plot(torch.arange(257) / 512, response)
panels[2].axvline(1 / 13, color="0.6", ls=":", label="hum")
panels[2].set(xlabel="frequency (per sample)", ylabel="gain of the filter")
panels[2].legend(frameon=False)
