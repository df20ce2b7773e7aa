import copy
import math
import pickle

import pytest
import torch

from lcs_kernels import interpolate_quantize
from lcs_kernels.formats import NestedWeight

WAYS = [("tensor", None), ("channel", None), ("group", 4), ("group", 100)]


@pytest.mark.parametrize(("per", "group"), WAYS)
@pytest.mark.parametrize("shape", [(6, 9), (5, 3, 3, 3), (7,), (4, 1)])
def test_every_width_is_as_near_as_its_steps(shape, per, group):
    torch.manual_seed(0)
    w = torch.randn(shape)
    weight = NestedWeight.pack(w, per, group)
    widest = weight.scales.max()
    for bits in range(2, 9):
        unit = 2 ** (8 - bits)
        error = (weight.unpack(bits) - w).abs().max()
        assert weight.unpack(bits).shape == w.shape and error <= widest * (0.5 + (unit - 1) / 2) * (1 + 2**-20)


def test_all_widths_together_take_8_bits_and_the_scales():
    weight = NestedWeight.pack(torch.randn(64, 33))
    assert weight.nbytes == 64 * 33 + 64 * 5 and weight.columns == 33 and weight.numel() == 64 * 33
    assert [weight.nbytes_at(bits) - 64 * 5 for bits in range(2, 9)] == [64 * 33 * bits // 8 for bits in range(2, 9)]
    assert weight.prepacked_nbytes == 0
    (planes,) = weight.prepack()
    assert weight.prepack()[0] is planes and weight.prepacked_nbytes == planes.nbytes
    for other in (copy.deepcopy(weight), pickle.loads(pickle.dumps(weight))):
        assert other.prepacked_nbytes == 0 and torch.equal(other.unpack(5), weight.unpack(5))


def test_zero_is_exact_at_8_bits():
    w = torch.randn(5, 40)
    w[:, ::3] = 0
    for per, group in WAYS:
        assert not NestedWeight.pack(w, per, group).unpack()[:, ::3].any()
    assert not NestedWeight.pack(torch.zeros(3, 4)).unpack(8).any()


@pytest.mark.parametrize("per", ["tensor", "channel"])
@pytest.mark.parametrize(
    ("shape", "parts"), [((5, 12), 3), ((1, 40, 1, 1), 4), ((6, 2, 3, 3), 2), ((3, 7), 1), ((4, 0), 2)]
)
def test_parts_of_the_columns_are_channels_of_their_own(shape, parts, per):
    torch.manual_seed(2)
    whole = NestedWeight.quantize(torch.randn(shape), 5, per)
    split = whole.split(parts)
    assert split.shape == (parts * shape[0], whole.columns // parts, 1, 1) and split.depth == 5
    for bits in range(2, 6):
        pieces = whole.unpack(bits).view(shape[0], whole.columns).chunk(parts, 1) if whole.columns else ()
        assert torch.equal(split.unpack(bits).flatten(1), torch.cat(pieces) if pieces else split.unpack(2).flatten(1))


def test_given_codes():
    codes = torch.arange(12, dtype=torch.uint8).view(3, 4) * 20
    weight = NestedWeight.from_codes(codes, torch.tensor(0.5), torch.tensor(7, dtype=torch.uint8))
    assert torch.equal(weight.unpack(), 0.5 * (codes.float() - 7)) and weight.scales.shape == (1, 1)
    assert torch.equal(weight.unpack(4), 0.5 * (codes // 16 * 16 + 7.5 - 7).float())
    again = weight.to("cpu")
    assert torch.equal(again.unpack(3), weight.unpack(3)) and again.prepacked_nbytes == 0


@pytest.mark.parametrize("per", ["tensor", "channel"])
@pytest.mark.parametrize("shape", [(6, 9), (5, 3, 3, 3), (7,), (0, 3), (4, 0)], ids=str)
def test_quantize_gives_what_interpolate_quantize_does(shape, per):
    torch.manual_seed(1)
    for scale in (1.0, 1e-42, 0.0):
        w = torch.randn(shape) * scale
        nested = NestedWeight.quantize(w, per=per, nested=True)
        for bits in range(2, 9):
            given = {"per_channel": per == "channel"}
            weight = NestedWeight.quantize(w, bits, per)
            assert weight.depth == bits and weight.planes.shape[0] == bits
            assert torch.equal(weight.unpack(), interpolate_quantize(w, None, 0.0, bits, **given))
            assert torch.equal(nested.unpack(bits), interpolate_quantize(w, None, 0.0, bits, nested=True, **given))


W = torch.ones(3, 4)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: NestedWeight.pack(W, "row"), "per must be"),
        (lambda: NestedWeight.pack(W, "group"), "per must be"),
        (lambda: NestedWeight.pack(W, "channel", 4), "per must be"),
        (lambda: NestedWeight.pack(W, "group", 0), "group must be 1 or more, got 0"),
        (lambda: NestedWeight.from_codes(W.byte(), W[0, 0], W[0, 0].byte(), 0), "group must be 1 or more, got 0"),
        (lambda: NestedWeight.pack(W.long()), "w must be a float tensor"),
        (lambda: NestedWeight.pack(W * math.nan), "w holds 12 values that are not finite"),
        (lambda: NestedWeight.pack(W).unpack(1), r"bits must lie in \[2, 8\], got 1"),
        (lambda: NestedWeight.quantize(W, 3).unpack(4), r"bits must lie in \[2, 3\], got 4"),
        (lambda: NestedWeight.quantize(W, 4, nested=True), "nested codes have 8 bits; got 'tensor', 4"),
        (lambda: NestedWeight.quantize(W.double()), "w must be float32 .*got torch.float64 2-d"),
        (lambda: NestedWeight.quantize(W, per="group"), "per must be 'tensor' or 'channel'"),
        (lambda: NestedWeight.quantize(W * math.nan), "w holds 12 values that are not finite"),
        (lambda: NestedWeight.pack(W).split(3), "4 columns in groups of 4 cannot be split into 3 parts"),
        (lambda: NestedWeight.pack(W).split(0), "cannot be split into 0 parts"),
        (lambda: NestedWeight.pack(W, "group", 2).split(2), "4 columns in groups of 2 cannot be split into 2 parts"),
        (lambda: NestedWeight.pack(W).unpack(9), r"bits must lie in \[2, 8\], got 9"),
    ],
)
def test_refuses(call, words):
    with pytest.raises(ValueError, match=words):
        call()


@pytest.mark.parametrize(
    "change",
    [
        {"planes": torch.zeros(1, 1, dtype=torch.int32)},
        {"planes": torch.zeros(9, 1, dtype=torch.int32)},
        {"planes": torch.zeros(8, 1, dtype=torch.int64)},
        {"scales": torch.ones(2, 1)},
        {"scales": NestedWeight.pack(W).scales.to("meta")},
        {"zero_points": torch.zeros(1, 1, dtype=torch.uint8)},
        {"shape": ()},
        {"group": 0},
    ],
    ids=lambda change: next(iter(change)),
)
def test_fields_that_do_not_fit_are_named(change):
    good = NestedWeight.pack(W)
    fields = {name: getattr(good, name) for name in ("planes", "scales", "zero_points", "shape", "group")}
    with pytest.raises(ValueError, match="NestedWeight: "):
        NestedWeight(**(fields | change))


@pytest.mark.parametrize("per", ["tensor", "channel", "group"])
@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (0, 0, 3)], ids=str)
def test_weights_of_nothing(shape, per):
    weight = NestedWeight.pack(torch.randn(shape), per, 3 if per == "group" else None)
    assert weight.unpack(4).shape == shape and weight.numel() == 0


def test_codes_beyond_the_depth_are_refused():
    scale, zero = torch.tensor(1.0), torch.tensor(0, dtype=torch.uint8)
    with pytest.raises(ValueError, match="codes of depth 4 must be below 16, got 16"):
        NestedWeight.from_codes(torch.tensor([[3, 15, 16]], dtype=torch.uint8), scale, zero, depth=4)
