"""
Depth from a stereo pair
========================

Two cameras side by side see an object at different columns. The difference, its *disparity*, is
inversely proportional to the distance of the object. :func:`torchcorr.lncc` compares the
neighbourhood of every pixel of one picture with the other picture, shifted by each possible
disparity; the disparity with the best score is taken.
"""

# %%
# The pair is ``stereo_motorcycle`` from scikit-image, a scene of the Middlebury stereo benchmark,
# with the disparities that were measured with structured light. It is used in gray, at half its
# size.

import matplotlib.pyplot as plt
import torch
from skimage import data

import torchcorr

left, right, measured = (torch.from_numpy(array) for array in data.stereo_motorcycle())
left, right = (image.float().mean(-1)[::2, ::2] for image in (left, right))
measured = measured[::2, ::2] / 2
# The right picture is made brighter and richer in contrast: LNCC is unaffected.
right = 1.3 * right + 20

# %%
# A pixel at column x of the left picture is at column x - d of the right one. Rolled copies of the
# right picture, one for each disparity d, are the leading axis of one call.

disparities = torch.arange(0, 36)
candidates = torch.stack([right.roll(int(d), dims=-1) for d in disparities])
scores = torchcorr.lncc(left, candidates, 9)
best, index = scores.max(dim=0)
disparity = disparities[index].float()

known = measured.isfinite()
wrong = (disparity - measured).abs() > 2
print(f"scores {tuple(scores.shape)}")
share = 1 - wrong[known].float().mean().item()
print(f"within 2 pixels of the measured disparity: {share:.0%}")

# %%
# Pixels whose best score is below 0.7 are white: they are hidden from the right camera, or their
# neighbourhood has no texture.

figure, axes = plt.subplots(2, 2, figsize=(9.5, 6), layout="constrained")
axes = axes.ravel()
axes[0].imshow(left.numpy(), cmap="gray")
axes[0].set_title("Left picture")
axes[1].imshow(right.numpy(), cmap="gray")
axes[1].set_title("Right picture")
for ax, values, title in (
    (axes[2], disparity.where(best > 0.7, torch.nan), "Disparity by the best LNCC"),
    (axes[3], measured.where(known, torch.nan), "Disparity by structured light"),
):
    shown = ax.imshow(values.numpy(), cmap="viridis", vmin=0, vmax=35)
    ax.set_title(title)
for ax in axes:
    ax.set(xticks=[], yticks=[])
figure.colorbar(shown, ax=list(axes[2:]), shrink=0.8, label="disparity (pixels)")
