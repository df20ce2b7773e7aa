import copy
import pickle

import pytest
import torch

from lcs_kernels import isa, width_conv2d
from lcs_kernels.formats import WidthWeight, width_weight
from lcs_kernels.formats.width_weight import FEW


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_keeps_the_weight_and_packs_it_once(dtype):
    w = torch.nn.Parameter(torch.randn(37, 5, 3, 2).to(dtype))
    weight = WidthWeight.pack(w)
    assert weight.prepacked_nbytes == 0 and weight.nbytes == w.nbytes and weight.shape == w.shape
    assert weight.unpack().data_ptr() == w.data_ptr() and not weight.unpack().requires_grad
    packed = weight.prepack()
    assert packed.shape == (3, 30, 16) and weight.prepack() is packed and weight.prepacked_nbytes == packed.nbytes
    rows = packed.view(3, 6, 5, 16).permute(0, 3, 2, 1).reshape(48, 5, 3, 2)
    assert torch.equal(rows[:37], w.float()) and not rows[37:].any()


@pytest.mark.parametrize("inputs", [FEW - 1, FEW, 2 * FEW - 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("pays", [False, True])
def test_pairs_are_packed_where_they_pay(monkeypatch, dtype, inputs, pays):
    monkeypatch.setattr(isa, "multiplies_pairs", lambda: pays)
    w = torch.randn(37, inputs, 3, 2).to(dtype)
    weight = WidthWeight.pack(w)
    packed, pairs = weight.prepack(), weight.prepack(pairs=True)
    assert weight.prepack(pairs=True) is pairs and weight.prepack() is packed
    if dtype == torch.float32 or inputs < FEW or not pays:
        assert pairs is packed
        return
    n = (inputs + 1) // 2
    assert pairs.shape == (3, 6 * n, 32) and weight.prepacked_nbytes == packed.nbytes + pairs.nbytes
    rows = pairs.view(3, 6, n, 16, 2).permute(0, 3, 2, 4, 1).reshape(48, 2 * n, 3, 2)
    assert torch.equal(rows[:37, :inputs], w) and not rows[37:].any() and not rows[:, inputs:].any()


@pytest.mark.usefixtures("isa")
def test_the_set_in_use_says_whether_pairs_pay():
    assert isa.multiplies_pairs() == torch.ops.lcs.multiplies_pairs()
    if isa.max_name() not in ("avx512_bf16", "amx"):
        assert not isa.multiplies_pairs()
    assert isa.multiplies_pairs() or isa.max_name() != "amx"


def test_pairs_that_no_longer_pay_are_left(monkeypatch):
    weight = WidthWeight.pack(torch.randn(37, FEW, 3, 2).bfloat16())
    monkeypatch.setattr(isa, "multiplies_pairs", lambda: True)
    pairs = weight.prepack(pairs=True)
    monkeypatch.setattr(isa, "multiplies_pairs", lambda: False)
    assert weight.prepack(pairs=True) is weight.prepack() is not pairs


def test_of_what_threads_pack_at_once_one_is_kept(monkeypatch):
    weight, pack, others = WidthWeight.pack(torch.randn(5, 4, 3, 3)), width_weight.width_conv2d_pack, []

    def overtaken(*arguments):
        monkeypatch.undo()
        others.append(weight.prepack())
        return pack(*arguments)

    monkeypatch.setattr(width_weight, "width_conv2d_pack", overtaken)
    packed = weight.prepack()
    assert packed is others[0] and weight.prepacked_nbytes == packed.nbytes


def test_compiled_code_reads_the_floats_that_are_there(monkeypatch):
    weight = WidthWeight.pack(torch.randn(5, FEW, 3, 3).bfloat16())
    packed = weight.prepack()
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert weight.prepack(pairs=True) is packed


def test_other_strides_and_dtypes():
    w = torch.randn(4, 3, 5, 5).to(memory_format=torch.channels_last)
    weight = WidthWeight.pack(w)
    assert weight.unpack().is_contiguous() and torch.equal(weight.unpack(), w)
    assert torch.equal(weight.to(dtype=torch.bfloat16).unpack(), w.bfloat16())


@pytest.mark.parametrize(
    ("weight", "error"),
    [
        (torch.ones(3, 4), ValueError),
        (torch.ones(3, 4, 5, 6).transpose(0, 1), ValueError),
        (torch.ones(3, 4, 5, 6, requires_grad=True), ValueError),
        (torch.ones(3, 4, 5, 6).half(), TypeError),
    ],
)
def test_refuses(weight, error):
    with pytest.raises(error, match="WidthWeight: weight must be"):
        WidthWeight(weight)


def test_a_weight_that_was_written_to_is_refused():
    w = torch.nn.Parameter(torch.randn(4, 3, 3, 3))
    weight, x = WidthWeight.pack(w), torch.randn(1, 3, 5, 5)
    width_conv2d(x, weight)
    with torch.no_grad():
        w.zero_()
    with pytest.raises(RuntimeError, match="WidthWeight: weight has been changed in place .* pack it again"):
        width_conv2d(x, weight)
    assert not width_conv2d(x, WidthWeight.pack(w)).any()


def test_copies_count_their_own_writes():
    w = torch.randn(4, 3, 3, 3).add_(1)
    weight, x = WidthWeight.pack(w), torch.randn(1, 3, 5, 5)
    y = width_conv2d(x, weight)
    for other in (copy.deepcopy(weight), pickle.loads(pickle.dumps(weight))):
        assert other.prepacked_nbytes == 0 and torch.equal(width_conv2d(x, other), y)


def test_takes_tensors_that_count_no_writes():
    with torch.inference_mode():
        weight, x = WidthWeight.pack(torch.ones(4, 3, 3, 3)), torch.ones(1, 3, 3, 3)
        assert torch.equal(width_conv2d(x, weight), torch.full((1, 4, 1, 1), 27.0))
