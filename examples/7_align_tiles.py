"""
Align two tiles
===============

:func:`torchcorr.estimate_shift` searches every lag at which two images overlap, and ranks them by
the significance of their score.
"""

# %%
# Two tiles of a photograph share a fifth of their width.

import torch
from matplotlib.figure import Figure
from skimage import data

import torchcorr

photograph = torch.from_numpy(data.camera()).double()
first, second = photograph[100:164, 100:164], photograph[102:166, 152:216]

shift = torchcorr.estimate_shift(first, second, score_map=True)
row, column = shift.shift.tolist()
print("7. Align two tiles that share a fifth of their width")
print(
    f"   shift ({row:+.2f}, {column:+.2f}), score {shift.score.item():.3f} over "
    f"{shift.overlap.item()} pixels; second best {shift.runner_up_score.item():.3f}"
)

# %%
# The score over a few pixels is often near 1 or -1, at the corners of the map. The shift lays the
# second tile on the first one.

rows, columns = (axis.numpy() for axis in shift.lags)
canvas = torch.full((66, 116), torch.nan, dtype=torch.float64)
canvas[2:66, 52:116] = second
overlaid = canvas.clone()
overlaid[:64, :64] = first
overlaid[2:64, 52:64] = (first[2:64, 52:64] + second[:62, :12]) / 2

figure = Figure(figsize=(9, 3.2), layout="constrained")
left, right = figure.subplots(1, 2, width_ratios=(1, 1.5))
extent = (columns[0] - 0.5, columns[-1] + 0.5, rows[-1] + 0.5, rows[0] - 0.5)
shown = left.imshow(shift.score_map.numpy(), vmin=-1, vmax=1, cmap="RdBu_r", extent=extent)
left.plot(column, row, "k+", markersize=12)
left.set(
    title="Score at each lag; + the one found",
    xlabel="lag along columns (pixels)",
    ylabel="lag along rows (pixels)",
)
figure.colorbar(shown, ax=left, label="score")
right.imshow(overlaid.numpy(), cmap="gray")
right.set(
    title=f"The second tile (framed), shifted by ({row:.0f}, {column:.0f})",
    xlabel="column (pixels)",
    ylabel="row (pixels)",
)
right.plot([52, 115, 115, 52, 52], [2, 2, 65, 65, 2], color="tab:orange")
