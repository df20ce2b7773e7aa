"""Winograd's F(6 x 6, 3 x 3) as `width_conv2d` multiplies bfloat16 by it on CPUs (arXiv 1509.09308), and its error."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

POINTS = (0, 1, -1, 2, -2, 0.5, -0.5)  # and infinity, where the highest coefficient is the value
TILES = (2, 4, 6)  # results a side: at the first so many points and one more, and infinity


def transforms(results: int) -> tuple[Tensor, Tensor, Tensor]:
    """A^T (results, n), G (n, 3) and B^T (n, n) of so many results from n = results + 2 points, in float64.

    A^T [(G w) * (B^T x)] are the results of one side; those of two are A^T [(G w G^T) * (B^T x B)] A.
    """
    n = results + 2
    points = torch.tensor(POINTS[: n - 1], dtype=torch.float64)

    def powers(degree: int) -> Tensor:
        """The values of x^0 ... x^degree at all points."""
        finite = points[:, None] ** torch.arange(degree + 1)
        infinite = torch.zeros(1, degree + 1, dtype=torch.float64)
        infinite[0, degree] = 1
        return torch.cat([finite, infinite])

    # w times y has degree n - 1: interpolated from its values. A correlation is that product transposed.
    return powers(results - 1).T.contiguous(), powers(2), torch.linalg.inv(powers(n - 1)).T.contiguous()


def _magnitudes() -> Tensor:
    """(6, 3, 8): what a tap and a pixel contribute to a result's sum of magnitudes, along a side, in any tile."""
    most = torch.zeros(TILES[-1], 3, TILES[-1] + 2, dtype=torch.float64)
    for results in TILES:
        a, g, b = (m.abs() for m in transforms(results))
        part = most[:results, :, : results + 2]
        part.copy_(torch.maximum(part, torch.einsum("ip,pk,pu->iku", a, g, b)))
    return most


def rounding_bound(x: Tensor, padding: int | list[int] | tuple[int, int], weight: Tensor) -> Tensor:
    """What `width_conv2d` of these, by F(6 x 6, 3 x 3), may be off by before its result is rounded to x's dtype.

    To first order, in float64. On its way to a result an element of x is rounded at most 8 times in B^T x B, one of the
    weight 4 times in G w G^T, a product as often as there are channels and once more, a sum 10 times in A^T m A, twice
    where it is divided by 90^2, and twice by scale and bias: each by 2^-24 of the magnitudes, which |A|, |B| and |G|
    pass on.
    """
    padding = (padding, padding) if isinstance(padding, int) else padding
    side, window = TILES[-1], TILES[-1] + 2
    size = [x.shape[2 + i] + 2 * padding[i] - 2 for i in range(2)]
    ends = [-(-size[i] // side) * side + 2 - padding[i] - x.shape[2 + i] for i in range(2)]
    x = F.pad(x.double().abs(), (padding[1], ends[1], padding[0], ends[0]))
    windows, sides = x.unfold(2, window, side).unfold(3, window, side), _magnitudes()
    taps = weight.double().abs().flatten(1).T
    rows = [torch.einsum("ncrsuv,au,jbv->nrsjcab", windows, one, sides).flatten(4) @ taps for one in sides]
    y = torch.stack(rows, 2).permute(0, 5, 1, 2, 3, 4).flatten(4).flatten(2, 3)
    return (weight.shape[1] + 27) * 2.0**-24 * y[..., : size[0], : size[1]]
