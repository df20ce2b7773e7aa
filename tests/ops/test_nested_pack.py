import pytest
import torch
from torch.library import opcheck

from lcs_kernels import nested_pack
from lcs_kernels.ops.nested_pack import codes_of, nested_prepack, nested_unpack, reference, reference_prepack
from lcs_kernels.ops.nested_pack import reference_unpack as reference_values

PACK = torch.ops.lcs.nested_pack.default
UNPACK = torch.ops.lcs.nested_unpack.default
PREPACK = torch.ops.lcs.nested_prepack.default
SIZES = [0, 1, 7, 31, 32, 33, 255, 1000, 65_537]


def codes(*shape, seed=0):
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("n", SIZES)
def test_there_and_back_at_every_width(threads, n):
    q = codes(n)
    planes = nested_pack(q)
    assert planes.dtype == torch.int32 and torch.equal(planes, reference(q))
    for bits in range(2, 9):
        assert torch.equal(codes_of(planes, (n,), bits), q.long() >> (8 - bits))


def test_bits_lie_where_the_format_says():
    q = codes(40)
    planes = nested_pack(q)
    for i, p in ((0, 0), (5, 7), (31, 3), (32, 0), (39, 6)):
        assert (int(planes[p, i // 32]) >> (i % 32)) & 1 == (int(q[i]) >> (7 - p)) & 1
    assert not (planes[:, 1] >> 8).any()


@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize(("shape", "group"), [((5, 7), 7), ((5, 7), 3), ((5, 64), 8), ((5, 3, 3, 3), 27), ((5, 0), 1)])
def test_values(shape, group, rows):
    q, groups = codes(*shape), max(-(-torch.Size(shape[1:]).numel() // group), 1)
    scales, zeros = torch.rand(rows, groups), codes(rows, groups, seed=1)
    planes = nested_pack(q)
    flat = q.view(shape[0], -1).double()
    at = torch.arange(flat.shape[1]) // group
    for bits in range(2, 9):
        unit = 2 ** (8 - bits)
        exact = (flat // unit * unit + (unit - 1) / 2 - zeros.double()[:, at]) * scales.double()[:, at]
        found = nested_unpack(planes, scales, zeros, shape, group, bits)
        assert torch.equal(found, exact.float().view(shape))
        assert torch.equal(found, reference_values(planes, scales, zeros, shape, group, bits))


def test_values_of_no_rows():
    given = nested_pack(codes(0, 7)), torch.rand(1, 1), codes(1, 1), (0, 7), 7, 4
    assert nested_unpack(*given).shape == reference_values(*given).shape == (0, 7)


@pytest.mark.parametrize(
    ("rows", "columns", "group", "taps", "parts", "joined"),
    [
        (1, 1, 1, 1, 1, 1),
        (33, 70, 70, 1, 1, 1),
        (64, 70, 16, 1, 2, 1),
        (40, 27, 27, 9, 1, 1),
        (66, 90, 90, 9, 3, 1),
        (5, 0, 1, 1, 1, 1),
        (40, 147, 147, 49, 1, 7),
        (66, 30, 30, 6, 3, 3),
        (33, 14, 14, 7, 1, 7),
    ],
)
def test_prepack(threads, rows, columns, group, taps, parts, joined):
    arguments = (nested_pack(codes(rows * columns)), rows, columns, group, taps, parts, joined)
    assert torch.equal(nested_prepack(*arguments), reference_prepack(*arguments))


def test_opcheck():
    planes = nested_pack(codes(70))
    opcheck(PACK, (codes(70),))
    opcheck(UNPACK, (planes, torch.rand(7, 2), codes(7, 2), [7, 10], 5, 3))
    opcheck(PREPACK, (planes, 7, 10, 5, 1, 1))


def test_refuses():
    with pytest.raises(TypeError, match="nested_pack: codes must be uint8, got torch.int32; NestedWeight.pack"):
        nested_pack(torch.ones(3, dtype=torch.int32))
    with pytest.raises(ValueError, match="nested_pack: codes of depth 4 must be below 16, got 200"):
        nested_pack(torch.tensor([3, 200, 15, 16], dtype=torch.uint8), 4)
