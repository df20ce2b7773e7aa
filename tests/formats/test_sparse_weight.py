import copy
import dataclasses
import pickle

import pytest
import torch

from lcs_kernels import interpolate_prune, sparse_linear
from lcs_kernels.formats import SparseWeight
from lcs_kernels.ops._library import pack_bits
from lcs_kernels.ops.sparse_pack import reference_prepack

DTYPES = [torch.float32, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1,), (7,), (3, 11), (5, 3, 3, 1), (0, 4), (4, 0)], ids=str)
def test_there_and_back(shape, dtype):
    torch.manual_seed(0)
    w = torch.randint(-1, 2, shape).to(dtype)
    weight = SparseWeight.pack(w)
    back = weight.unpack()
    assert back.dtype == dtype and torch.equal(back, w)
    stored, n = int((w != 0).sum()), w.numel()
    assert weight.numel() == n and weight.density == stored / max(n, 1)
    assert weight.nbytes == (n + 31) // 32 * 4 + stored * w.element_size()


def test_a_mask_names_zeros_too():
    w, mask = torch.tensor([[0.0, 1.0, 2.0], [3.0, 0.0, 4.0]]), torch.tensor([1, 1, 0, 0, 0, 1]).bool()
    weight = SparseWeight.pack(w, pack_bits(mask))
    assert weight.mask_bits.tolist() == [0b100011] and weight.values.tolist() == [0, 1, 4]
    assert weight.unpack().tolist() == [[0, 1, 0], [0, 0, 4]]


def test_a_pruned_weight_that_trains():
    w0, w1 = (torch.randn(8, 9, requires_grad=True) for _ in range(2))
    w = interpolate_prune(w0, w1, 0.5, 0.25)
    weight = SparseWeight.pack(w)
    assert weight.values.numel() == 18 and not weight.values.requires_grad
    assert torch.equal(weight.unpack(), w.detach())


def test_to_another_dtype_or_device():
    w = torch.randn(5, 7)
    weight = SparseWeight.pack(w)
    half = weight.to(dtype=torch.bfloat16)
    assert torch.equal(half.unpack(), w.bfloat16()) and half.mask_bits is weight.mask_bits
    meta = weight.to("meta")
    assert meta.values.is_meta and meta.mask_bits.is_meta and meta.shape == (5, 7)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_prepack_is_made_once_per_block_and_never_saved(dtype):
    weight = SparseWeight.pack(torch.randn(5, 4, 3).to(dtype), pack_bits(torch.rand(60) < 0.5))
    saved, before = weight.nbytes, weight.prepacked_nbytes
    parts = weight.prepack(6)
    assert weight.prepack(6) is parts and weight.prepack(5) is not parts
    for a, b in zip(parts, reference_prepack(weight.mask_bits, weight.values, 5, 12, 6), strict=True):
        assert torch.equal(a, b)
    assert before == 0 and weight.nbytes == saved
    assert weight.prepacked_nbytes == sum(part.nbytes for block in (5, 6) for part in weight.prepack(block))
    assert SparseWeight(weight.mask_bits, weight.values, weight.shape).prepacked_nbytes == 0
    for other in (copy.deepcopy(weight), pickle.loads(pickle.dumps(weight))):
        assert other.prepacked_nbytes == 0 and torch.equal(other.unpack(), weight.unpack())


def test_batches_share_few_prepacks():
    weight = SparseWeight.pack(torch.randn(5, 700))
    for rows in range(1, 200):
        sparse_linear(torch.ones(rows, 700), weight)
    assert len({id(parts) for parts in weight._prepacks.values()}) <= 6


def test_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        SparseWeight.pack(torch.ones(3)).shape = (1, 3)


WORDS, VALUES = torch.zeros(2, dtype=torch.int32), torch.zeros(0)


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ((WORDS, VALUES.to("meta"), (5, 7)), ValueError, "mask_bits are on cpu, values on meta"),
        ((WORDS, VALUES, ()), ValueError, "shape must have at least one dimension"),
        ((WORDS, VALUES, (5, 6)), ValueError, r"mask_bits must be 1 int32 words for shape \(5, 6\), .*int32 \(2,\)"),
        ((WORDS.long(), VALUES, (5, 7)), ValueError, "2 int32 words .*got torch.int64"),
        ((WORDS[:, None], VALUES, (5, 7)), ValueError, r"got torch.int32 \(2, 1\)"),
        ((WORDS, VALUES.half(), (5, 7)), TypeError, "values must be a float32 or bfloat16 vector, got torch.float16"),
        ((WORDS, VALUES.view(0, 1), (5, 7)), TypeError, r"got torch.float32 \(0, 1\)"),
    ],
    ids=str,
)
def test_bad_fields(fields, error, message):
    with pytest.raises(error, match=f"SparseWeight: .*{message}"):
        SparseWeight(*fields)


@pytest.mark.parametrize("values", [torch.ones(1), torch.ones(3), torch.ones(4)[::2]], ids=["few", "many", "strided"])
def test_values_that_do_not_fit_the_bitmap_are_found_at_first_use(values):
    weight = SparseWeight(torch.tensor([3], dtype=torch.int32), values, (2, 3))
    for use in (weight.unpack, lambda: weight.prepack(2)):
        with pytest.raises(RuntimeError, match="a contiguous vector of the 2 weights that mask_bits names"):
            use()


def test_packing_refuses_what_it_cannot_hold():
    with pytest.raises(TypeError, match="sparse_pack: w must be float32 or bfloat16, got torch.float64"):
        SparseWeight.pack(torch.ones(3).double())
    with pytest.raises(ValueError, match="at least one dimension"):
        SparseWeight.pack(torch.tensor(1.0))
