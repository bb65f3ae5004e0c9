"""
Match an object on another background, in a picture with gaps
=============================================================

A template is a rectangle, the object in it rarely is. Weights let only the object count: pixels of
the template that belong to the background have none, nor have pixels of the picture that are
missing. :func:`torchcorr.zncc` is then the coefficient of correlation of those that are left.
"""

# %%
# A coin is cut out of ``coins`` from scikit-image, and its background replaced by stripes, as if it
# had been photographed elsewhere. Three bands of the picture that is searched hold no data, as in
# the swaths of a satellite: their pixels are NaN. One of them hides a part of the coin.

import matplotlib.pyplot as plt
import torch
from skimage import data

import torchcorr

picture = torch.from_numpy(data.coins()).float()
y, x, height, width = 92, 236, 60, 64
rows = torch.arange(height) - (height - 1) / 2
columns = torch.arange(width) - (width - 1) / 2
coin = (rows[:, None] / 26) ** 2 + (columns / 28) ** 2 < 1

stripes = torch.where(torch.arange(width) // 4 % 2 == 0, 255.0, 0.0)
template = torch.where(coin, picture[y : y + height, x : x + width], stripes)

gaps = torch.zeros_like(picture, dtype=torch.bool)
for first in (60, 250, 340):
    gaps[:, first : first + 14] = True
image = picture.masked_fill(gaps, torch.nan)

# %%
# Without weights one missing pixel makes the score of every window NaN that it lies in, and the
# stripes are compared with whatever surrounds the coins.

plain = torchcorr.zncc(picture, template)
scores = torchcorr.zncc(image, template, template_mask=coin, nan="ignore", min_overlap=0.5)

print("8. Find a coin by its own pixels, in a picture with gaps")
for name, found in (("all pixels, no gaps", plain), ("the coin's pixels, with gaps", scores)):
    place = divmod(int(found.argmax()), found.shape[1])
    print(f"   {name}: best score {float(found.max()):.3f} at {place}, the coin is at {(y, x)}")

# %%
# ``min_overlap`` leaves out windows with less than half of the coin on valid pixels; they score 0.
# :func:`torchcorr.coverage` says how much of it each window has.

share = torchcorr.coverage(~gaps, coin)
print(f"   {float(share[y, x]):.0%} of the coin's pixels are valid where it was found")

figure, axes = plt.subplots(1, 3, figsize=(10, 3.2), layout="constrained")
axes[0].imshow(image, cmap="gray")
axes[0].add_patch(plt.Rectangle((x, y), width, height, fill=False, color="tab:red"))
axes[0].set_title("picture with gaps")
axes[1].imshow(template, cmap="gray")
axes[1].set_title("template; stripes do not count")
shown = axes[2].imshow(scores, cmap="RdBu_r", vmin=-1, vmax=1)
axes[2].set_title("score")
figure.colorbar(shown, ax=axes[2], shrink=0.8)
for axis in axes:
    axis.set_axis_off()
