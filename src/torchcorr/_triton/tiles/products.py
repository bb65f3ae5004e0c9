"""Products of spectra that are summed over tiles, for the gradients of templates.

Each spectrum is read once for each partner and no product is stored: 32 bytes for two complex
numbers, where separate operators would write and read their products.
"""

# Kernels are written in Triton's language, whose types mypy does not know.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
# mypy: disable-error-code="assignment, misc"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..windows.launch import PROGRAMS

_BLOCK = 256
_NUMBERS = [
    "tiles", "each", "pairs", "templates", "channels", "size", "blocks", "pitch_part",
    "pitch_pair", "pitch_template",
]  # fmt: skip


@triton.jit(do_not_specialize=_NUMBERS)
def products_kernel(
    input_spectra, upstream_spectra, out, tiles, each, pairs, templates, channels, size, blocks,
    pitch_part, pitch_pair, pitch_template, ADDED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A block of frequencies of one template and channel, over some of the tiles in order."""
    pid = tl.program_id(0)
    number = (pid % blocks) * BLOCK + tl.arange(0, BLOCK)
    inside = number < size
    c, rest = pid // blocks % channels, pid // blocks // channels
    k, rest = rest % templates, rest // templates
    p, part = (rest % pairs).to(tl.int64), (rest // pairs).to(tl.int64)
    at = out + part * pitch_part + p * pitch_pair + k.to(tl.int64) * pitch_template
    at += (c.to(tl.int64) * size + number) * 2
    real = tl.zeros([BLOCK], tl.float64)
    imaginary = tl.zeros([BLOCK], tl.float64)
    if ADDED:
        real = tl.load(at, mask=inside, other=0.0)
        imaginary = tl.load(at + 1, mask=inside, other=0.0)
    for t in range(part * each, tl.minimum(part * each + each, tiles)):
        one = input_spectra + (((p * tiles + t) * channels + c) * size + number) * 2
        other = upstream_spectra + (((p * tiles + t) * templates + k) * size + number) * 2
        a, b = tl.load(one, mask=inside, other=0.0), tl.load(one + 1, mask=inside, other=0.0)
        u, v = tl.load(other, mask=inside, other=0.0), tl.load(other + 1, mask=inside, other=0.0)
        real += a * u + b * v
        imaginary += b * u - a * v
    tl.store(at, real, mask=inside)
    tl.store(at + 1, imaginary, mask=inside)


def add_products(total: Tensor, input_spectra: Tensor, upstream_spectra: Tensor) -> None:
    """Adds spectra (pairs, tiles, C, ...) times conjugate ones (pairs, tiles, T, ...), summed over
    tiles, to a total (pairs, T, C, ...).
    """
    (pairs, tiles, channels), templates = input_spectra.shape[:3], upstream_spectra.shape[2]
    size = input_spectra.shape[3:].numel()
    blocks = -(-size // _BLOCK)
    single = pairs * templates * channels * blocks
    # Few frequencies would leave a device idle, so tiles are divided among programs too.
    each = -(-tiles // max(1, min(tiles, PROGRAMS // single)))
    parts = -(-tiles // each)
    out = one = total
    pitch_part = 0
    if parts > 1:
        out = total.new_empty((parts, *total.shape))
        one, pitch_part = out[0], 2 * out.stride(0)
    products_kernel[(parts * single,)](
        *(
            torch.view_as_real(x)
            for x in (input_spectra.contiguous(), upstream_spectra.contiguous(), out)
        ),
        tiles, each, pairs, templates, channels, size, blocks, pitch_part,
        2 * one.stride(0), 2 * one.stride(1), ADDED=parts == 1, BLOCK=_BLOCK,
    )  # fmt: skip
    if parts > 1:
        total += out.sum(0)
