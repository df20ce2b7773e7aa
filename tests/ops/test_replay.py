"""Recorded ops give the very bits that they give one by one, on inputs that they were not recorded with."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.library import opcheck

from lcs_kernels import line_norm, replay, sparse_conv2d, sparse_conv2d_norm, width_conv2d, width_conv2d_norm
from lcs_kernels.formats import WidthWeight
from lcs_kernels.ops.replay import OPS, Recorder, Recording, fake, reference

from .sparse_cases import DTYPES, float_weight
from .test_sparse_conv2d import FORMATS

OP = torch.ops.lcs.replay.default


def network(dtype=torch.float32):
    """A function of all ops: two inputs, the second a residual, and three results."""
    sparse, wide = float_weight((8, 3, 3, 3), dtype=dtype), float_weight((16, 8, 1, 1), dtype=dtype)
    full = WidthWeight(torch.randn(16, 8, 3, 3).to(dtype))
    line = (*(torch.randn(16) for _ in range(4)), 0.3)
    scale, bias = torch.rand(8), torch.randn(8)

    def run(x, residual):
        a = sparse_conv2d(x, sparse, bias, 1, 1, scale=scale, residual=residual, relu=True, cap=2.5)
        b = sparse_conv2d_norm(a, wide, line, 4, relu=True)
        c = width_conv2d(a, full, 12, padding=1, scale=torch.arange(16.0), relu=True)
        d = width_conv2d_norm(a, full, 16, line, 4, padding=1, residual=b, max_pool=(3, 2, 1))
        mean = d.mean((-1, -2), keepdim=True)
        mean.as_strided_(mean.shape, (16, 1, 16, 16))  # as global average pooling does, channels last
        return line_norm(c, *(t[:12] for t in line[:4]), 0.7, 3), d, mean.view(len(x), 16)

    return run


def recorded(run, *inputs):
    """What it makes, and the recording."""
    run(*inputs)  # makes weights ready
    with Recorder() as recorder:
        results = run(*inputs)
    calls = [call for call in recorder.calls if call.can_replay]
    assert {call.name for call in calls} == set(OPS)
    return results, Recording.of(calls, inputs, results)


def inputs(dtype=torch.float32, layout=torch.contiguous_format, n=2):
    return [torch.randn(n, c, 9, 7).to(dtype).contiguous(memory_format=layout) for c in (3, 8)]


@pytest.fixture(autouse=True)
def _no_gradients():
    torch.manual_seed(0)
    with torch.no_grad():
        yield


@pytest.mark.parametrize("layout", FORMATS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_other_inputs_give_the_bits_of_the_ops_one_by_one(dtype, layout, isa):
    run = network(dtype)
    results, recording = recorded(run, *inputs(dtype, layout))
    for _ in range(2):
        given = inputs(dtype, layout)
        for other, expected in zip(replay(given, recording), run(*given), strict=True):
            assert torch.equal(other, expected) and other.stride() == expected.stride()
        assert not torch.equal(other, results[2])
    again = reference(given, recording.constants, recording.code, recording.made)
    assert all(map(torch.equal, again, run(*given)))


def batched(x, residual):
    """Sparse convolutions after each other, whose results others read, too, or leave the call."""
    a = sparse_conv2d(x, WEIGHTS[0], VECTORS[0], 1, 1, scale=VECTORS[1], relu=True)
    b = sparse_conv2d(a, WEIGHTS[1], None, 1, 1, residual=residual, relu=True, cap=2.5)
    c = sparse_conv2d(b, WEIGHTS[2], None, 2, 3, 2, 2)
    d = sparse_conv2d(b, WEIGHTS[3], VECTORS[0], (3, 2), residual=sparse_conv2d(a, WEIGHTS[3], None, (3, 2)))
    e = sparse_conv2d(width_conv2d(b, FULL, 8, padding=1), WEIGHTS[1], None, 1, 1, residual=a)
    f = sparse_conv2d(e, WEIGHTS[1], None, (1, 3), 12, residual=None)
    return b, c, d, sparse_conv2d(f, WEIGHTS[3], None, 1, 0), e


def chain(run, *given):
    """A recording of what `run` makes of them, which is checked on other inputs, and what that is."""
    run(*given)
    with Recorder() as recorder:
        results = run(*given)
    recording = Recording.of([call for call in recorder.calls if call.can_replay], given, results)
    others = [torch.randn_like(t) for t in given]
    made = replay(others, recording)
    for other, expected in zip(made, run(*others), strict=True):
        assert torch.equal(other, expected) and other.stride() == expected.stride()
    return recording, others


def test_a_single_channel_on_its_way_is_laid_out_as_one_by_one(isa):
    one, many = float_weight((1, 3, 3, 3)), float_weight((8, 1, 3, 3))
    line = (*(torch.randn(8) for _ in range(4)), 0.3)

    def run(x):
        a = sparse_conv2d(sparse_conv2d(x, one, None, 1, 1), many, None, 1, 1)
        return a, line_norm(a, *line, 2), sparse_conv2d(a, WEIGHTS[1], None, 1, 1, residual=a)

    recording, given = chain(run, torch.randn(16, 3, 7, 7).contiguous(memory_format=torch.channels_last))
    opcheck(OP, (given, recording.constants, recording.code, recording.made))


def test_a_residual_is_not_taken_where_it_is_still_read(isa):
    def run(x):
        a = sparse_conv2d(x, WEIGHTS[1], None, 1, 1)
        b = sparse_conv2d(a, WEIGHTS[1], None, 1, 1, residual=a)  # a is its x, too
        c = sparse_conv2d(b, WEIGHTS[1], None, 1, 1, residual=a)
        d = sparse_conv2d(c, WEIGHTS[3], None, residual=b)  # b gives its memory
        return c, sparse_conv2d(d, WEIGHTS[1], None, 1, 1, residual=x)

    chain(run, torch.randn(16, 8, 14, 14))
    chain(run, torch.randn(1, 8, 28, 28))


WEIGHTS = [float_weight(shape) for shape in ((8, 3, 3, 3), (8, 8, 3, 3), (6, 4, 3, 3), (8, 8, 1, 1))]
VECTORS = torch.randn(8), torch.rand(8)
FULL = WidthWeight(torch.randn(8, 8, 3, 3))


@pytest.mark.parametrize("layout", FORMATS, ids=str)
@pytest.mark.parametrize(
    ("n", "size"),
    [
        (16, (9, 13)),
        (32, (20, 29)),
        (48, (7, 6)),
        (1, (28, 24)),
        (3, (14, 14)),
        (1, (7, 7)),
        (8, (16, 7)),
        (16, (5, 4)),
        (0, (9, 13)),
    ],
)
def test_images_by_the_vector_give_the_same_bits(n, size, layout, isa):
    def inputs():
        return [torch.randn(n, c, *size).contiguous(memory_format=layout) for c in (3, 8)]

    first = inputs()
    batched(*first)
    with Recorder() as recorder:
        results = batched(*first)
    recording = Recording.of([call for call in recorder.calls if call.can_replay], first, results)
    for given in (first, inputs()):
        for other, expected in zip(replay(given, recording), batched(*given), strict=True):
            assert torch.equal(other, expected) and other.stride() == expected.stride()


STATISTICS = {"mean": torch.randn(8), "var": torch.rand(8) + 0.5}
AFFINE = (*(torch.randn(8) for _ in range(4)), torch.tensor(0.3))


def preactivated(x):
    """Norms of given statistics of what others read, too, one of them later; and of a single step, of what is no
    convolution's, and of a sum that leaves the call."""
    a = sparse_conv2d(x, WEIGHTS[0], VECTORS[0], 1, 1)
    b = line_norm(a, *AFFINE, 1, relu=True, **STATISTICS)
    c = sparse_conv2d(sparse_conv2d(b, WEIGHTS[1], None, 1, 1, relu=True), WEIGHTS[3], None, residual=a)
    short = sparse_conv2d(c, WEIGHTS[3], None, 2)
    d = line_norm(c, VECTORS[1], None, None, None, None, 1, 1e-3, **STATISTICS)
    e = sparse_conv2d(d, WEIGHTS[1], VECTORS[1], 2, 1, residual=short)
    f = line_norm(e, *AFFINE, 4, relu=True)  # statistics of its own
    g = line_norm(e, *AFFINE, 1, relu=True, **STATISTICS)
    return c, line_norm(sparse_conv2d(f, WEIGHTS[3], None, residual=g), *AFFINE, 1, residual=f, **STATISTICS), e


def grouped(x):
    """Norms of the statistics of groups, of convolutions and of what others read, too."""
    a = sparse_conv2d_norm(x, WEIGHTS[0], AFFINE, 4, bias=VECTORS[0], padding=1, relu=True)
    b = line_norm(a, *AFFINE, 2, 1e-3, relu=True)
    point = VECTORS[1], None, None, None, None
    c = sparse_conv2d_norm(b, WEIGHTS[1], point, 8, padding=1, residual=a, relu=True)
    d = line_norm(sparse_conv2d(c, WEIGHTS[3], None, 2), None, None, None, None, None, 1)
    e = sparse_conv2d_norm(c, WEIGHTS[1], AFFINE, 1, stride=2, padding=1, residual=d)
    return b, line_norm(e, *AFFINE, 4, residual=d, relu=True), sparse_conv2d(e, WEIGHTS[3], None)


@pytest.mark.parametrize("layout", FORMATS, ids=str)
@pytest.mark.parametrize("size", [(16, 16), (32, 20), (24, 56), (7, 12)], ids=str)
@pytest.mark.parametrize("n", [1, 3, 9, 16, 40])
@pytest.mark.parametrize("run", [preactivated, grouped])
def test_norms_between_convolutions_give_the_same_bits(run, n, size, layout, isa):
    before = torch.get_num_threads()
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        chain(run, torch.randn(n, 3, *size).contiguous(memory_format=layout))
    torch.set_num_threads(before)


@pytest.mark.parametrize("n", [6, 7])
def test_large_images_in_passes_that_threads_share(n, isa):
    """Of more than 16 MiB, in too few groups for threads to take each a group: these have the same memory in turn."""

    def run(x):
        a = sparse_conv2d(x, WEIGHTS[0], VECTORS[0], 1, 1, relu=True)
        b = sparse_conv2d(sparse_conv2d(a, WEIGHTS[1], None, 1, 1, relu=True), WEIGHTS[1], None, 1, 1, residual=a)
        return b, sparse_conv2d(b, WEIGHTS[3], None, 2)

    before = torch.get_num_threads()
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        chain(run, torch.randn(n, 3, 192, 200))
    torch.set_num_threads(before)


def test_a_grid_that_suits_no_longer_is_left_for_another(isa):
    """Halves of rows and columns that fill the lanes, and then rows of an image too small to be halved."""
    weight = float_weight((64, 64, 3, 3), density=0.3)

    def run(x):
        a = sparse_conv2d(sparse_conv2d(x, weight, None, 1, 1, relu=True), weight, None, 1, 1, residual=x)
        b = sparse_conv2d(a, weight, None, 2, 1, relu=True)
        return a, sparse_conv2d(b, weight, None, 1, 1, residual=b)

    before = torch.get_num_threads()
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        chain(run, torch.randn(1, 64, 28, 28))
    torch.set_num_threads(before)


def test_a_norm_that_has_been_written_to_counts(isa):
    def run(x):
        norm = line_norm(sparse_conv2d(x, WEIGHTS[0], None, 1, 1), *affine, 1, **statistics)
        return sparse_conv2d(norm, WEIGHTS[1], None, 1, 1)

    affine, statistics = tuple(t.clone() for t in AFFINE), {k: v.clone() for k, v in STATISTICS.items()}
    recording, given = chain(lambda x: [run(x)], torch.randn(1, 3, 16, 16))
    for tensor in (*affine, *statistics.values()):
        tensor.mul_(0.5)
        assert torch.equal(replay(given, recording)[0], run(*given))


@pytest.mark.parametrize("apart", [False, True])
def test_vectors_that_are_written_to_or_moved_count(apart, isa):
    """Chains are kept from call to call with where their constants lie, and nothing of what these hold."""
    bias = torch.randn(8, 2)[:, 0] if apart else torch.randn(8)

    def run(x):
        return sparse_conv2d(sparse_conv2d(x, WEIGHTS[0], bias, 1, 1, relu=True), WEIGHTS[1], bias, 1, 1)

    recording, given = chain(lambda x: [run(x)], torch.randn(1, 3, 16, 16))
    bias.add_(1)
    assert torch.equal(replay(given, recording)[0], run(*given))
    bias.data = torch.randn(8)
    assert torch.equal(replay(given, recording)[0], run(*given))
    bias.data = torch.randn(16)[:8]
    assert torch.equal(replay(given, recording)[0], run(*given))
    bias.as_strided_((8,), (2,))  # at the same place
    assert torch.equal(replay(given, recording)[0], run(*given))


def test_values_of_weights_that_are_not_made_ready_count():
    weight, given = float_weight((8, 8, 3, 3)), [torch.randn(1, 8, 16, 16)]
    op = torch.ops.lcs.sparse_conv2d.default

    def run(x):
        for _ in range(2):
            x = op(x, weight.mask_bits, weight.values, (8, 8, 3, 3), None, (1, 1), (1, 1), (1, 1), 1, True, 72, [])
        return [x]

    recording, _ = chain(run, *given)
    weight.values.mul_(2)
    assert torch.equal(replay(given, recording)[0], run(*given)[0])


def test_inputs_of_another_kind_take_another_chain(isa):
    def run(x):
        return sparse_conv2d(sparse_conv2d(x, WEIGHTS[0], None, 1, 1, relu=True), WEIGHTS[1], None, 1, 1)

    recording, _ = chain(lambda x: [run(x)], torch.randn(1, 3, 16, 16))
    for shape in ((1, 3, 16, 16), (16, 3, 16, 16), (1, 3, 9, 40), (1, 3, 16, 16)):
        for layout in FORMATS:
            x = torch.randn(shape).contiguous(memory_format=layout)
            assert torch.equal(replay([x], recording)[0], run(x))


def test_threads_share_a_recording():
    def run(x):
        return sparse_conv2d(sparse_conv2d(x, WEIGHTS[0], None, 1, 1, relu=True), WEIGHTS[1], None, 1, 1)

    x = torch.randn(1, 3, 16, 16)
    run(x)
    with Recorder() as recorder:
        y = run(x)
    recording = Recording.of(recorder.calls, [x], [y])
    others = [torch.randn_like(x) for _ in range(8)]

    def again(x):
        with torch.no_grad():
            return [replay([x], recording)[0] for _ in range(50)]

    with ThreadPoolExecutor(8) as pool:
        for other, made in zip(others, pool.map(again, others), strict=True):
            assert all(torch.equal(each, run(other)) for each in made)


def recording_of_one():
    x = torch.randn(1, 3, 16, 16)
    sparse_conv2d(x, WEIGHTS[0], None, 1, 1)
    with Recorder() as recorder:
        y = sparse_conv2d(x, WEIGHTS[0], None, 1, 1)
    return Recording.of(recorder.calls, [x], [y]), x, y


def test_the_op_refuses_a_recording_that_is_gone():
    recording, x, y = recording_of_one()
    replay([x], recording)
    number = recording.kept
    assert torch.equal(torch.ops.lcs.replay_kept([x], number)[0], y)
    del recording
    with pytest.raises(RuntimeError, match=f"replay: no recording {number} is kept"):
        torch.ops.lcs.replay_kept([x], number)
    torch.ops.lcs.replay_forget(number)


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda r: pickle.loads(pickle.dumps(r))])
def test_a_copy_is_a_recording_of_its_own(copied):
    recording, x, y = recording_of_one()
    replay([x], recording)
    other = copied(recording)
    del recording
    assert torch.equal(replay([x], other)[0], y)


def test_a_recording_that_goes_while_others_are_recorded_is_none_of_their_calls():
    recording, x, _ = recording_of_one()
    replay([x], recording)
    with Recorder() as recorder:
        del recording
    assert recorder.calls == []


def test_large_weights_are_shared_out_by_channels(isa):
    """Of more bytes than a thread keeps from row to row."""
    weight = float_weight((256, 256, 3, 3), density=0.15)

    def run(x):
        return sparse_conv2d(sparse_conv2d(x, weight, None, 1, 1, relu=True), weight, None, 1, 1, residual=x)

    x = torch.randn(16, 256, 3, 7)
    run(x)
    with Recorder() as recorder:
        y = run(x)
    recording = Recording.of([call for call in recorder.calls if call.can_replay], [x], [y])
    before = torch.get_num_threads()
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        assert torch.equal(replay([x], recording)[0], y)
    torch.set_num_threads(before)


def test_a_mean_of_everything_is_torchs_for_any_number_of_threads(threads):
    """Its sum depends on that number."""
    torch.manual_seed(12)
    x = torch.randn(1, 64, 56, 56)

    def run(x):
        return line_norm(line_norm(x, *(None,) * 5, 1), *(None,) * 5, 1).mean((1, 2, 3))

    with Recorder() as recorder:
        y = run(x)
    recording = Recording.of(recorder.calls, [x], [y])
    assert torch.equal(replay([x], recording)[0], y)


def test_an_op_in_place_drops_the_value_before_it():
    def run(x):
        mean = line_norm(x, *(None,) * 5, 1).mean((2, 3), keepdim=True)
        return mean.as_strided_(mean.shape, (3, 1, 3, 3)) * 1, mean

    x = torch.randn(2, 3, 4, 5)
    with Recorder() as recorder:
        _, mean = run(x)
    recording = Recording.of([call for call in recorder.calls if call.can_replay], [x], [mean])
    (found,) = replay([x + 1], recording)
    assert torch.equal(found, run(x + 1)[1]) and found.stride() == (3, 1, 3, 3)
    (again,) = reference([x + 1], recording.constants, recording.code, recording.made)
    assert torch.equal(again, found) and again.stride() == found.stride()


def test_nothing_that_is_recorded_is_written_to():
    given = inputs()
    _, recording = recorded(network(), *given)
    kept = [t.clone() for t in (*given, *recording.constants)]
    first = replay(given, recording)
    second = replay(given, recording)
    assert all(map(torch.equal, kept, (*given, *recording.constants)))
    assert all(map(torch.equal, first, second)) and first[0].data_ptr() != second[0].data_ptr()


def test_the_schema_holds():
    given = inputs()
    _, recording = recorded(network(), *given)
    opcheck(OP, (given, recording.constants, recording.code, recording.made))


def test_results_have_dtypes_of_their_own():
    given = [torch.randn(1, 3, 8, 8), torch.randn(1, 3, 8, 8).bfloat16()]

    def run(x, other):
        return sparse_conv2d(x, WEIGHTS[0]), line_norm(other, *[None] * 5, 3)

    run(*given)
    with Recorder() as recorder:
        results = run(*given)
    recording = Recording.of(recorder.calls, given, results)
    opcheck(OP, (given, recording.constants, recording.code, recording.made))
    made = fake(given, recording.constants, recording.code, recording.made)
    assert [t.dtype for t in made] == [t.dtype for t in results] == [torch.float32, torch.bfloat16]


def test_compiles_without_a_graph_break():
    given = inputs()
    _, recording = recorded(network(), *given)
    compiled = torch.compile(lambda a, b: replay([a, b], recording), backend="aot_eager", fullgraph=True)
    assert all(map(torch.equal, compiled(*given), replay(given, recording)))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda code: code[:-1], "ends within a step"),
        (lambda code: torch.cat([code, code[:1]]), "goes on behind its last step"),
        (lambda code: code.int(), "contiguous vector of int64"),
        (lambda code: code[None], "contiguous vector of int64"),
        (lambda code: code.where(torch.arange(len(code)) != 1, len(OPS)), f"there is no op {len(OPS)}"),
        (lambda code: code.where(torch.arange(len(code)) != 1, -1), "there is no op -1"),
        (lambda code: code.where(torch.arange(len(code)) != 2, 2**40), "there is no value"),
        (lambda code: code.where(torch.arange(len(code)) != 2, 2**40 + 1), "there is no constant"),
        (lambda code: code.where(torch.arange(len(code)) != 2, -2), "there is no"),
        (lambda code: code.where(torch.arange(len(code)) != len(code) - 1, 4), "value 2 was dropped"),
    ],
    ids=range(10),
)
def test_code_that_does_not_fit_is_named(change, words):
    given = inputs()
    _, recording = recorded(network(), *given)
    with pytest.raises(RuntimeError, match=words):
        OP(given, recording.constants, change(recording.code), recording.made)


def test_what_does_not_fit_is_refused():
    given = inputs()
    _, recording = recorded(network(), *given)
    with pytest.raises(RuntimeError, match="residual must be laid out as the result"):
        replay([given[0], given[1][:1]], recording)
    with pytest.raises(RuntimeError, match="aten::as_strided_ does not take what it is given"):
        replay([t[:1] for t in given], recording)
    with torch.enable_grad(), pytest.raises(ValueError, match=r"call it under torch\.no_grad"):
        replay([given[0].requires_grad_(), given[1]], recording)
    with Recorder() as recorder:
        y = given[0] + 1
    with pytest.raises(ValueError, match=r"aten\.add\.Tensor is none of sparse_conv2d, "):
        Recording.of(recorder.calls, given, [y])
    with Recorder() as recorder:
        y = given[0].view(2, -1)
    with pytest.raises(ValueError, match=r"aten\.view\.default returns memory that no call before has made"):
        Recording.of(recorder.calls, given, [y])
    with Recorder() as recorder:
        y = given[0].mean((2, 3), dtype=torch.float64)
    with pytest.raises(ValueError, match=r"aten\.mean\.dim is none of"):
        Recording.of(recorder.calls, given, [y])
    with pytest.raises(ValueError, match="a result is not what one of the calls makes first"):
        Recording.of([], given, given)
