"""
Find a coin under changed light
===============================

:func:`torchcorr.zncc` compares a template with every window of an image, whatever the brightness
and the contrast of either. Here one coin is cut out of a photograph, the light of the photograph is
changed, and every coin that looks like it is found.
"""

# %%
# The photograph is ``coins`` from scikit-image, ``(303, 384)``. The template is one of its coins.
# The image that is searched has half the contrast, is brighter, and becomes still brighter from
# left to right, so that no pixel keeps its value.

import torch
from skimage import data

import torchcorr
from torchcorr.plot import draw_matches

photograph = torch.from_numpy(data.coins()).float()
y, x, height, width = 92, 236, 60, 64
template = photograph[y : y + height, x : x + width]

light = torch.linspace(0, 60, photograph.shape[1])
image = 0.5 * photograph + 50 + light

# %%
# The score map has one score in [-1, 1] for every position of the template's top-left corner.
# :func:`torchcorr.match_template` returns the positions of its peaks to a fraction of a pixel, best
# first. Neighbouring coins lie so close together that their boxes overlap; ``min_distance`` allows
# it.

scores = torchcorr.zncc(image, template)
matches = torchcorr.match_template(
    image, template, threshold=0.7, min_distance=(height // 2, width // 2)
)

print("1. Find one coin in a photograph whose brightness and contrast were changed")
print(f"   cut out at (y, x) = ({y}, {x}); found, best first:")
for position, score in zip(matches.positions, matches.scores, strict=True):
    print("   ({:6.2f}, {:6.2f})  score {:.3f}".format(*position, score))
print("   the first is the coin itself, the others are coins like it (score >= 0.7)")

# %%
# The first match lies where the template was cut out. Its score is below 1 only because the light
# increases across the window; one change of brightness and contrast for the whole window would
# leave it at 1. :func:`torchcorr.plot.draw_matches` draws the result.

figure = draw_matches(
    image.numpy(),
    matches,
    template=template.numpy(),
    score_map=scores.numpy(),
    title="Found under changed light: the coin\nitself (best score) and coins like it",
)
