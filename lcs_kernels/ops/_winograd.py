"""Winograd's products (arXiv 1509.09308) as `width_conv2d` multiplies on CPUs, and their error: F(4 x 4, 3 x 3) of
float32, F(6 x 6, 3 x 3) of bfloat16, and F(4 x 4, 4 x 4) of the first layers of networks, 7 x 7 or 8 x 8 taps at stride
2."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

POINTS = (0, 1, -1, 0.5, -2, -0.5)  # and infinity, where the highest coefficient is the value
TILE = 4  # results a side
WIDE_POINTS = (0, 1, -1, 2, -2, 0.5, -0.5)  # of bfloat16
WIDE_TILES = (2, 4, 6)  # at the first so many of these points and one more, and infinity


def transforms(results: int, taps: int = 3, points: tuple[float, ...] = POINTS) -> tuple[Tensor, Tensor, Tensor]:
    """A^T (results, n), G (n, taps) and B^T (n, n) of so many results from n = results + taps - 1 points, in float64.

    A^T [(G w) * (B^T x)] are the results of one side; those of two are A^T [(G w G^T) * (B^T x B)] A.
    """
    n = results + taps - 1
    points = torch.tensor(points[: n - 1], dtype=torch.float64)

    def powers(degree: int) -> Tensor:
        """The values of x^0 ... x^degree at all points."""
        finite = points[:, None] ** torch.arange(degree + 1)
        infinite = torch.zeros(1, degree + 1, dtype=torch.float64)
        infinite[0, degree] = 1
        return torch.cat([finite, infinite])

    # w times y has degree n - 1: interpolated from its values. A correlation is that product transposed.
    return powers(results - 1).T.contiguous(), powers(taps - 1), torch.linalg.inv(powers(n - 1)).T.contiguous()


def _magnitudes(results: int, taps: int = 3, points: tuple[float, ...] = POINTS) -> Tensor:
    """(results, taps, n): what a tap and a pixel contribute to a result's sum of magnitudes, along a side."""
    a, g, b = (m.abs() for m in transforms(results, taps, points))
    return torch.einsum("ip,pk,pu->iku", a, g, b)


def _wide_magnitudes() -> Tensor:
    """Likewise, the most in tiles of any size."""
    most = torch.zeros(WIDE_TILES[-1], 3, WIDE_TILES[-1] + 2, dtype=torch.float64)
    for results in WIDE_TILES:
        part = most[:results, :, : results + 2]
        part.copy_(torch.maximum(part, _magnitudes(results, points=WIDE_POINTS)))
    return most


def _sums(x: Tensor, weight: Tensor, size: list[int], side: Tensor) -> Tensor:
    """Of the magnitudes of what becomes a result, of `size` a side; x is padded in front."""
    results, _, window = side.shape
    ends = [-(-n // results) * results + window - results - have for n, have in zip(size, x.shape[2:], strict=True)]
    x = F.pad(x.double().abs(), (0, ends[1], 0, ends[0]))
    windows, taps = x.unfold(2, window, results).unfold(3, window, results), weight.double().abs().flatten(1).T
    rows = [torch.einsum("ncrsuv,au,jbv->nrsjcab", windows, one, side).flatten(4) @ taps for one in side]
    y = torch.stack(rows, 2).permute(0, 5, 1, 2, 3, 4).flatten(4).flatten(2, 3)
    return y[..., : size[0], : size[1]]


def rounding_bound(x: Tensor, padding: int | list[int] | tuple[int, int], weight: Tensor) -> Tensor:
    """What `width_conv2d` of these, by F(4 x 4, 3 x 3) of float32 or F(6 x 6, 3 x 3) of bfloat16, may be off by before
    its result is rounded to x's dtype.

    To first order, in float64. On its way to a result an element of x is rounded at most 6 times (8 of bfloat16) in
    B^T x B, one of the weight 4 times in G w G^T, a product as often as there are channels and once more, a sum 12
    times in A^T m A, with its constants (10, and twice where it is divided by 90^2), and twice by scale and bias: each
    by 2^-24 of the magnitudes, which |A|, |B| and |G| pass on.
    """
    padding = (padding, padding) if isinstance(padding, int) else padding
    wide = x.dtype == torch.bfloat16
    size = [n + 2 * p - 2 for n, p in zip(x.shape[2:], padding, strict=True)]
    x = F.pad(x, (padding[1], padding[1], padding[0], padding[0]))
    y = _sums(x, weight, size, _wide_magnitudes() if wide else _magnitudes(TILE))
    return (weight.shape[1] + (27 if wide else 25)) * 2.0**-24 * y


def split(t: Tensor, padding: tuple[int, int]) -> Tensor:
    """(n, c, h, w) as (n, 4 * c, ., .): what a kernel of stride 2 sees at stride 1. Padded in front, and to be even."""
    height, width = (size + before for size, before in zip(t.shape[2:], padding, strict=True))
    t = F.pad(t, (padding[1], width % 2, padding[0], height % 2))
    return torch.cat([t[..., i::2, j::2] for i in range(2) for j in range(2)], 1)


def strided_rounding_bound(x: Tensor, padding: tuple[int, int], weight: Tensor) -> Tensor:
    """What `width_conv2d` of these at stride 2, by F(4 x 4, 4 x 4), may be off by before its result is rounded to x's
    dtype: as `rounding_bound`, of 6 roundings in B^T x B and in G w G^T, one in each of 4 * c products and once more,
    12 in A^T m A and two by scale and bias; and 3 more, as terms of B^T x cancel after sums of them were rounded.
    """
    size = [(n + 2 * p - k) // 2 + 1 for n, p, k in zip(x.shape[2:], padding, weight.shape[2:], strict=True)]
    y = _sums(split(x, padding), split(weight, (0, 0)), size, _magnitudes(TILE, 4))
    return (4 * x.shape[1] + 30) * 2.0**-24 * y
