"""
Follow the drift of a stack
===========================

:func:`torchcorr.register_stack` compares each frame with the mean of the others, so that neither
the noise of one frame nor the errors of many steps add up.
"""

# %%
# Thirty frames of a scene that drifts by parts of a pixel, in noise that hides it.

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy import ndimage
from skimage import data

import torchcorr

rng = np.random.default_rng(0)
scene = data.camera()[100:260, 180:340].astype(np.float64)
time = np.arange(30)
true = np.stack([6 * np.sin(time / 9), 0.4 * time], 1)
spectrum = np.fft.fftn(scene)
frames = np.stack(
    [np.fft.ifftn(ndimage.fourier_shift(spectrum, -k)).real[30:-30, 30:-30] for k in true]
)
frames += rng.normal(scale=60.0, size=frames.shape)

drift = torchcorr.register_stack(torch.from_numpy(frames), max_step=2)
# Shifts are counted from the first frame, whose noise has a part in all of them.
found = drift.shifts.numpy()
found = found - (found - true).mean(0)
errors = found - true
print("10. Follow the drift of a stack of noisy frames")
print(f"   {len(frames)} frames; root mean square error {np.sqrt((errors**2).mean()):.3f} pixels")

# %%
# The mean of the shifted frames shows what no single one does.

figure = Figure(figsize=(9.6, 3.3), dpi=120, layout="constrained")
panels = figure.subplots(1, 3)
for axes, picture, title in (
    (panels[0], frames[15], "One frame"),
    (panels[1], drift.mean.numpy(), "Mean of the shifted frames"),
):
    axes.imshow(picture, cmap="gray")
    axes.set_title(title, fontsize=10)
    axes.set(xticks=[], yticks=[])
for axis, name in enumerate(("rows", "columns")):
    panels[2].plot(time, found[:, axis], ".", color=f"C{axis}", label=name)
    panels[2].plot(time, true[:, axis], color=f"C{axis}", lw=0.8)
panels[2].set_title("Drift: found (dots) and true", fontsize=10)
panels[2].set(xlabel="frame", ylabel="pixels")
panels[2].legend(frameon=False)
