import itertools
import math

import pytest
import torch
from torch.library import opcheck

from lcs_kernels import interpolate_prune, sparse_pack
from lcs_kernels.ops._library import pack_bits
from lcs_kernels.ops.sparse_pack import (
    reference,
    reference_prepack,
    reference_prepack_tiles,
    reference_unpack,
    sparse_prepack,
    sparse_prepack_tiles,
    sparse_unpack,
)

from .prune_cases import assert_same
from .sparse_cases import DTYPES

PACK = torch.ops.lcs.sparse_pack.default
UNPACK = torch.ops.lcs.sparse_unpack.default
PREPACK = torch.ops.lcs.sparse_prepack.default
PREPACK_TILES = torch.ops.lcs.sparse_prepack_tiles.default
DENSITIES = [0, 0.02, 0.5, 1]
SIZES = [0, 1, 2, 31, 32, 33, 1000, 16_383, 16_384, 16_385, 33_001]


def dense(n, density, dtype):
    """Zeros of both signs among numbers, NaN, infinities and denormals."""
    w = torch.randn(n)
    w[::7], w[1::11], w[2::13] = float("nan"), float("inf"), 1e-40
    zeros = torch.where(torch.rand(n) < 0.5, 0.0, -0.0)
    return torch.where(torch.rand(n) < density, w, zeros).to(dtype)


def assert_all_same(actual, expected):
    for a, b in zip(actual, expected, strict=True):
        assert_same(a, b) if a.is_floating_point() else torch.testing.assert_close(a, b, rtol=0, atol=0)


def check(w, mask_bits=None):
    found, values = sparse_pack(w, mask_bits)
    assert_all_same((found, values), reference(w, mask_bits))
    back = sparse_unpack(found, values, w.shape)
    assert_same(back, reference_unpack(found, values, w.shape))
    return found, values, back


@pytest.mark.parametrize("density", DENSITIES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n", SIZES)
def test_there_and_back(n, dtype, density):
    torch.manual_seed(n)
    w = dense(n, density, dtype)
    assert_same(check(w)[2], torch.where(w == 0, 0, w))
    mask = torch.rand(n) < density
    mask_bits, values, back = check(w, pack_bits(mask))
    assert_same(values, w[mask])
    assert_same(back, torch.where(mask, w, 0))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_threads_change_nothing(threads, dtype):
    torch.manual_seed(1)
    w = dense(300_007, 0.3, dtype)
    check(w)
    check(w, pack_bits(torch.rand(300_007) < 0.2))


def test_every_small_bitmap():
    """Against the words written out: bit i of the word is weight i."""
    for n in range(8):
        for row in itertools.product([0.0, 1.0], repeat=n):
            w = torch.tensor(row) * torch.arange(1, n + 1)
            mask_bits, values = sparse_pack(w)
            assert mask_bits.tolist() == [sum(1 << i for i in range(n) if row[i])] * (n > 0)
            assert values.tolist() == [i + 1.0 for i in range(n) if row[i]]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_prune_keeps_zeros(dtype):
    """Fewer weights are not 0 than are kept: those kept are stored, 0 or not."""
    w0 = torch.zeros(10, 101)
    w0[::3] = torch.randn(4, 101)
    w, mask_bits = torch.ops.lcs.interpolate_prune(w0, None, torch.tensor(0.0), torch.tensor(900), dtype)
    found, values, back = check(w, mask_bits)
    assert values.numel() == 900 and int((values != 0).sum()) <= 404
    assert torch.equal(back, interpolate_prune(w0, None, 0.0, keep=900, dtype=dtype))
    assert found.data_ptr() != mask_bits.data_ptr()  # an op may not return its input


@pytest.mark.parametrize("view", [lambda w: w.t(), lambda w: w[1::2, 3:-2], lambda w: w[:1].expand(40, 60)])
def test_any_stride(view):
    w = view(dense(2400, 0.5, torch.float32).view(40, 60))
    assert_all_same(sparse_pack(w), sparse_pack(w.contiguous()))


PREPACKS = [
    (rows, columns, block)
    for rows, columns in [(1, 1), (7, 1), (1, 77), (9, 64), (33, 101), (8, 320)]
    for block in sorted({1, 7, 32, columns, columns + 5})
] + [(0, 5, 2), (5, 0, 1), (0, 0, 3), (3, 65_537, 65_536), (2, 70_001, 65_536), (2, 70_001, 33_333)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "columns", "block"), PREPACKS)
def test_prepack_matches_reference(rows, columns, block, dtype):
    torch.manual_seed(rows + columns)
    w = dense(rows * columns, 0.8, dtype)
    for density in (0, 0.3, 1) if columns < 1000 else (0.5,):
        packed = sparse_pack(w, pack_bits(torch.rand(rows * columns) < density))
        weight = (*packed, rows, columns, block)
        assert_all_same(sparse_prepack(*weight), reference_prepack(*weight))


def test_a_prepack_read_back():
    """By hand: two blocks of two columns, the second one column wide."""
    w = torch.tensor([[1.0, 0, 2], [0, 3, 0], [4, 5, 6]])
    count, start, index, values = sparse_prepack(*sparse_pack(w), 3, 3, 2)
    assert count.tolist() == [[1, 1, 2], [1, 0, 1]] and start.tolist() == [0, 4, 6]
    assert index.tolist() == [0, 1, 0, 1, 0, 0] and values.tolist() == [1, 3, 4, 5, 2, 6]


def test_prepack_with_threads(threads):
    weight = (*sparse_pack(dense(201 * 333, 0.2, torch.float32)), 201, 333, 50)
    assert_all_same(sparse_prepack(*weight), reference_prepack(*weight))


@pytest.mark.parametrize("columns", [0, 1, 31, 32, 33, 100])
@pytest.mark.parametrize("rows", [0, 1, 15, 16, 17, 32, 50])
def test_prepack_tiles_matches_reference(threads, rows, columns):
    torch.manual_seed(rows + columns)
    w = dense(rows * columns, 0.8, torch.bfloat16)
    for density in (0, 0.3, 1):
        weight = (*sparse_pack(w, pack_bits(torch.rand(rows * columns) < density)), rows, columns)
        assert_all_same(sparse_prepack_tiles(*weight), reference_prepack_tiles(*weight))


def test_a_prepack_of_tiles_read_back():
    """By hand: the first row's weights are bits 0 and 1 of a word, the second row's the two above."""
    w = torch.tensor([[1.0, 0, 2], [3, 4, 0]], dtype=torch.bfloat16)
    bits, start, values = sparse_prepack_tiles(*sparse_pack(w), 2, 3)
    assert bits.shape == (2, 1, 16) and bits.flatten().tolist() == [0b1101, 0b0001] + [0] * 30
    assert start.tolist() == [0, 4, 4] and values.tolist() == [1, 3, 4, 2] + [0] * 32


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_opcheck(dtype):
    w, mask_bits = torch.randn(5, 9).to(dtype), pack_bits(torch.rand(45) < 0.5)
    opcheck(PACK, (w, None))
    opcheck(PACK, (w, mask_bits))
    packed = sparse_pack(w, mask_bits)
    opcheck(UNPACK, (*packed, [5, 9]))
    opcheck(PREPACK, (*packed, 5, 9, 4))
    opcheck(PREPACK, (*sparse_pack(torch.zeros(5, 0)), 5, 0, 4))
    if dtype == torch.bfloat16:
        opcheck(PREPACK_TILES, (*packed, 5, 9))


def words(n, dtype=torch.int32, device="cpu"):
    return torch.zeros(n, dtype=dtype, device=device)


@pytest.mark.parametrize(
    ("w", "mask_bits", "error", "message"),
    [
        (torch.ones(9).half(), None, TypeError, "w must be float32 or bfloat16, got torch.float16"),
        (torch.ones(9).double(), None, TypeError, "float64"),
        (torch.ones(33), words(1), ValueError, r"2 int32 words on cpu for w of shape \(33,\), got torch.int32 \(1,\)"),
        (torch.ones(9), words(1, torch.int64), ValueError, "got torch.int64"),
        (torch.ones(9), words(1).view(1, 1), ValueError, r"got torch.int32 \(1, 1\)"),
        (torch.ones(9), words(1, device="meta"), ValueError, "on meta"),
        (torch.ones(9), words(1) + 512, RuntimeError, "names weights past the last of 9"),
        (torch.ones(9, device="meta"), None, RuntimeError, "meta"),
    ],
    ids=str,
)
def test_bad_pack(w, mask_bits, error, message):
    with pytest.raises(error, match=message):
        sparse_pack(w, mask_bits)


@pytest.mark.parametrize(
    ("mask_bits", "values", "shape", "message"),
    [
        (words(2), torch.ones(0), (9,), r"mask_bits must be 1 contiguous int32 words for 9 weights, got shape \(2\)"),
        (words(4)[::2], torch.ones(0), (33,), "2 contiguous int32 words"),
        (words(1, torch.int64), torch.ones(0), (9,), "int32 words"),
        (words(1) + 512, torch.ones(1), (9,), "past the last of 9"),
        (words(1) - 1, torch.ones(1), (9,), "past the last of 9"),
        (words(1) + 3, torch.ones(3), (9,), r"the 2 weights that mask_bits names, got \(3\)"),
        (words(1) + 3, torch.ones(1), (9,), r"the 2 weights that mask_bits names, got \(1\)"),
        (words(1) + 3, torch.ones(4)[::2], (9,), "contiguous vector"),
        (words(1) + 3, torch.ones(2).half(), (9,), "values must be float32 or bfloat16"),
        (words(1), torch.ones(0), (3, -3), "shape holds -3"),
    ],
    ids=str,
)
def test_bad_unpack(mask_bits, values, shape, message):
    with pytest.raises(RuntimeError, match=f"sparse_unpack: .*{message}"):
        sparse_unpack(mask_bits, values, shape)
    if len(shape) == 1:
        with pytest.raises(RuntimeError, match=f"sparse_prepack: .*{message}"):
            sparse_prepack(mask_bits, values, 1, math.prod(shape), 4)


@pytest.mark.parametrize(
    ("mask_bits", "values", "error", "message"),
    [
        (words(1), torch.ones(0), TypeError, "values must be bfloat16, got torch.float32"),
        (words(2), torch.ones(0).bfloat16(), RuntimeError, "mask_bits must be 1 contiguous int32 words"),
        (words(1) + 3, torch.ones(3).bfloat16(), RuntimeError, "the 2 weights that mask_bits names"),
    ],
    ids=str,
)
def test_bad_tiles(mask_bits, values, error, message):
    with pytest.raises(error, match=f"sparse_prepack_tiles: .*{message}"):
        sparse_prepack_tiles(mask_bits, values, 3, 3)


@pytest.mark.parametrize("block", [0, -1, 65_537])
def test_bad_block(block):
    with pytest.raises(RuntimeError, match=f"sparse_prepack: rows 1, columns 9 and block {block} must not"):
        sparse_prepack(words(1), torch.ones(0), 1, 9, block)
