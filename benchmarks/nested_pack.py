"""Rows of `nested_pack`: the codes of a 4096 x 4096 weight to bit planes, and planes to what the kernels read."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from lcs_kernels import nested_pack
from lcs_kernels.ops.nested_pack import codes_of, nested_prepack

from .harness import Row

FEATURES = 4096


def rows() -> Iterator[Row]:
    torch.manual_seed(0)
    codes = torch.randint(0, 256, (FEATURES, FEATURES), dtype=torch.uint8)
    planes, copy = nested_pack(codes), torch.empty_like(codes)

    def check():
        if not torch.equal(codes_of(planes, codes.shape, 5), codes.long() >> 3):
            raise AssertionError("nested_pack does not unpack to what was packed")

    yield Row(
        op="nested_pack",
        case=f"{FEATURES} x {FEATURES}",
        candidates={
            "lcs": lambda: nested_pack(codes),
            "lcs, planes to the kernels' form": lambda: nested_prepack(planes, FEATURES, FEATURES, FEATURES),
        },
        limit=lambda: copy.copy_(codes),
        bytes=2 * codes.numel(),
        check=check,
    )
