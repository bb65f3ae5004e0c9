"""
Lay a turned photograph on another
==================================

:func:`torchcorr.estimate_pose` finds rotation, scale and shift between two images of one scene.
"""

# %%
# The second image shows the scene turned by 145 degrees at 0.7 times the resolution, with another
# brightness, and with noise.

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy import ndimage
from skimage import data
from skimage.transform import SimilarityTransform, warp

import torchcorr

scene = data.camera().astype(np.float64)
reference = scene[60:300, 120:360]
taken = SimilarityTransform(scale=1 / 0.7, rotation=np.deg2rad(145), translation=(420, 170))
moving = 0.6 * warp(ndimage.gaussian_filter(scene, 0.6), taken, output_shape=(220, 200), order=3)
moving += 30 + np.random.default_rng(0).normal(scale=3.0, size=moving.shape)

pose = torchcorr.estimate_pose(torch.from_numpy(reference), torch.from_numpy(moving))
print("9. Lay a turned photograph on another")
print(
    f"   turned by {pose.angle.item():+.2f} degrees, enlarged by {pose.scale.item():.4f}, "
    f"score {pose.score.item():.3f} over {pose.overlap.item()} pixels"
)

# %%
# The matrix of the pose takes places of the second image to the first one. SciPy wants the way
# back.

back = np.linalg.inv(pose.matrix.numpy())
laid = ndimage.affine_transform(
    moving, back[:2, :2], back[:2, 2], output_shape=reference.shape, order=3, cval=np.nan
)

figure = Figure(figsize=(9.6, 3.4), dpi=120, layout="constrained")
panels = figure.subplots(1, 3)
both = np.dstack([reference / 255, (laid - 30) / 153, (laid - 30) / 153])
pictures = (reference, moving, np.nan_to_num(both).clip(0, 1))
titles = ("Reference", "Moving", "Laid over each other:\nred and cyan where they differ")
for axes, picture, title in zip(panels, pictures, titles, strict=True):
    axes.imshow(picture, cmap="gray")
    axes.set_title(title, fontsize=10)
    axes.set(xticks=[], yticks=[])
