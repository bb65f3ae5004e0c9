"""
Separate ink from paper under uneven light
==========================================

A threshold made of the mean and the deviation of the window around each pixel separates ink from
paper where one threshold for the whole page fails.
"""

# %%
# ``page`` from scikit-image, ``(191, 384)``, is lit from the right, and its left side lies in
# shadow. The time of :func:`torchcorr.local_mean` and :func:`torchcorr.local_std` does not grow
# with the window; ``mode="same"`` returns a value for every pixel.

import matplotlib.pyplot as plt
import torch
from skimage import data
from skimage.filters import threshold_otsu

import torchcorr

page = torch.from_numpy(data.page()).float()
window = 25
mean = torchcorr.local_mean(page, window, mode="same", pad_mode="reflect")
deviation = torchcorr.local_std(page, window, mode="same", pad_mode="reflect")

# %%
# Sauvola's threshold lies below the mean where the window has little contrast, as blank paper does,
# and near the mean where there is ink. 128 is about the largest deviation of 8-bit
# values.

sauvola = mean * (1 + 0.2 * (deviation / 128 - 1))
by_window = page > sauvola
by_page = page > threshold_otsu(page.numpy())

# %%
# One threshold for the page loses the text in the shadow.

figure, axes = plt.subplots(2, 2, figsize=(11, 6), layout="constrained")
panels = (
    ("Page", page),
    (f"Local deviation, window {window}", deviation),
    ("One threshold for the page (Otsu)", by_page),
    ("A threshold for each window (Sauvola)", by_window),
)
for ax, (title, image) in zip(axes.flat, panels, strict=True):
    ax.imshow(image.numpy(), cmap="gray")
    ax.set(title=title, xticks=[], yticks=[])

# %%
# J. Sauvola and M. Pietikäinen, *Adaptive document image binarization*, Pattern Recognition 33,
# 2000.
