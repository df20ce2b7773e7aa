"""A 2-d convolution at any width: with the first channels of a full weight, which is neither sliced nor copied."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from lcs_kernels._load import ensure_loaded

from ._convolution import (
    check_cap,
    check_fits,
    conv2d,
    finished,
    geometry,
    laid_out_residual,
    memory_format,
    output_size,
)
from ._library import check_operands, define, is_wide, through_relu, wants_grad, widened, without_autocast

if TYPE_CHECKING:
    from lcs_kernels.formats import WidthWeight

Pair = int | list[int] | tuple[int, int]

DTYPES = (torch.float32, torch.bfloat16, torch.float64)
BLOCK = 16  # channels that the packed form keeps together
WINOGRAD_CHANNELS = 32  # from which on gradients by Winograd's products are faster than torch's


@without_autocast
def reference(
    x,
    weight,
    out_channels,
    scale,
    bias,
    stride,
    padding,
    dilation,
    groups,
    relu,
    packed,
    winograd=None,
    cap=None,
    residual=None,
) -> Tensor:
    """The convolution with the sliced weight in float32 (float64 for float64), rounded once; then the residual."""
    wide = torch.promote_types(x.dtype, torch.float32)
    w = weight[:out_channels, : x.shape[1] // groups].to(wide)
    y = conv2d(x.to(wide), w, None, stride, padding, dilation, groups)
    if residual is None:
        y = finished(y, scale, bias, relu, cap).to(x.dtype)
    else:
        y = finished(finished(y, scale, bias, False, None).to(x.dtype), None, None, relu, cap, residual)
    return y.contiguous(memory_format=memory_format(x))


def reference_backward(
    grad, x, weight, scale, y, stride, padding, dilation, groups, wanted, cap=None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """By torch's convolutions of the block, on every device; `y`: the result, where ReLU came last.

    Gradients to x, weight, scale and bias, empty where they are not wanted; the last three of full shape, 0 outside of
    what was used.
    """
    wide = torch.promote_types(grad.dtype, torch.float32)
    if y is not None:
        grad = through_relu(grad, y, cap)
    grad = grad.to(wide)
    wants_x, wants_weight, wants_scale, wants_bias = wanted
    out = grad.shape[1]
    block = weight[:out, : x.shape[1] // groups].to(wide)

    def convolved(grad, *wanted):
        settings = (stride, padding, dilation, False, [0, 0], groups)
        return torch.ops.aten.convolution_backward(grad, x.to(wide), block, None, *settings, [*wanted, False])[:2]

    grad_x = grad_block = grad_scale = grad.new_empty(0)
    if scale is None:
        grad_x, grad_block = convolved(grad, wants_x, wants_weight)
    else:
        factor = scale[:out, None, None].to(wide)
        if wants_x:
            grad_x = convolved(grad * factor, True, False)[0]
        if wants_weight or wants_scale:
            grad_block = convolved(grad, False, True)[1]
        if wants_scale:  # y is linear in the weight: <grad, y> = <the weight's gradient, the weight>
            grad_scale = grown((grad_block * block).sum((1, 2, 3)), scale.shape, scale.dtype)
        if wants_weight:
            grad_block = grad_block * factor[..., None]
    return (
        grad_x.to(x.dtype).contiguous(memory_format=memory_format(x)) if wants_x else grad.new_empty(0, dtype=x.dtype),
        grown(grad_block, weight.shape, weight.dtype) if wants_weight else grad.new_empty(0, dtype=weight.dtype),
        grad_scale,
        grown(grad.sum((0, 2, 3)), weight.shape[:1], wide) if wants_bias else grad.new_empty(0),
    )


@without_autocast
def reference_input_gradient(grad: Tensor, weight: Tensor, padding) -> Tensor:
    """Of 3 x 3 taps at stride 1, without dilation, in one group, and at most 2 pixels of padding."""
    turned = weight.flip(2, 3).transpose(0, 1)
    x = conv2d(grad, turned, None, [1, 1], [2 - p for p in padding], [1, 1], 1)
    return x.contiguous(memory_format=memory_format(grad))


@without_autocast
def reference_weight_gradient(grad: Tensor, x: Tensor, padding) -> Tensor:
    """Likewise."""
    if not grad.numel() or not x.numel():
        return x.new_zeros((grad.shape[1], x.shape[1], 3, 3))
    return torch.nn.grad.conv2d_weight(x, (grad.shape[1], x.shape[1], 3, 3), grad, 1, padding).contiguous()


def grown(block: Tensor, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """A tensor that begins with `block` in its first one or two dimensions, else 0; each element is written once."""
    if block.shape == shape:
        return block.to(dtype).contiguous()
    full = block.new_empty(shape, dtype=dtype)
    out = block.shape[0]
    full[out:].zero_()
    if block.dim() == 1:
        full[:out].copy_(block)
    else:
        full[:out, block.shape[1] :].zero_()
        full[:out, : block.shape[1]].copy_(block)
    return full


def reference_pack(weight: Tensor, pairs: bool) -> Tensor:
    """`pairs`: of a bfloat16 weight, pairs of input channels next to each other, where there is one else."""
    out, inputs, height, width = weight.shape
    if pairs:
        even = F.pad(weight, (0, 0, 0, 0, 0, inputs % 2))
        halves = [reference_pack(even[:, half::2], False) for half in range(2)]
        return torch.stack(halves, -1).flatten(2).bfloat16()
    padded = F.pad(weight.float().flatten(1), (0, 0, 0, -out % BLOCK))
    parts = padded.view(-1, BLOCK, inputs, height * width).split(BLOCK, 2)
    return torch.cat([part.permute(0, 3, 2, 1).flatten(1, 2) for part in parts], 1)


def fake(
    x,
    weight,
    out_channels,
    scale,
    bias,
    stride,
    padding,
    dilation,
    groups,
    relu,
    packed,
    winograd=None,
    cap=None,
    residual=None,
):
    size = output_size(x.shape, weight.shape, stride, padding, dilation)
    return x.new_empty((x.shape[0], out_channels, *size)).contiguous(memory_format=memory_format(x))


def fake_backward(grad, x, weight, scale, y, stride, padding, dilation, groups, wanted, cap=None):
    wide = torch.promote_types(grad.dtype, torch.float32)
    vector = weight.shape[:1], wide
    like = (x.shape, x.dtype), (weight.shape, weight.dtype), vector, vector
    grads = [grad.new_empty(s if want else (0,), dtype=t) for want, (s, t) in zip(wanted, like, strict=True)]
    return grads[0].contiguous(memory_format=memory_format(x)) if wanted[0] else grads[0], *grads[1:]


def fake_input_gradient(grad, weight, padding):
    size = [n + 2 - 2 * p for n, p in zip(grad.shape[2:], padding, strict=True)]
    return grad.new_empty((len(grad), weight.shape[1], *size)).contiguous(memory_format=memory_format(grad))


def fake_weight_gradient(grad, x, padding):
    return x.new_empty((grad.shape[1], x.shape[1], 3, 3))


def fake_pack(weight, pairs):
    out, inputs, height, width = weight.shape
    if pairs:
        shape = (out + BLOCK - 1) // BLOCK, (inputs + 1) // 2 * height * width, 2 * BLOCK
        return weight.new_empty(shape, dtype=torch.bfloat16)
    return weight.new_empty(((out + BLOCK - 1) // BLOCK, inputs * height * width, BLOCK), dtype=torch.float32)


_op = define(
    "width_conv2d(Tensor x, Tensor weight, SymInt out_channels, Tensor? scale, Tensor? bias, SymInt[] stride,"
    " SymInt[] padding, SymInt[] dilation, SymInt groups, bool relu, Tensor? packed, bool? winograd=None,"
    " float? cap=None, Tensor? residual=None) -> Tensor",
    reference,
    fake,
)
_op_backward = define(
    "width_conv2d_backward(Tensor grad, Tensor x, Tensor weight, Tensor? scale, Tensor? y, SymInt[] stride,"
    " SymInt[] padding, SymInt[] dilation, SymInt groups, bool[] wanted, float? cap=None)"
    " -> (Tensor grad_x, Tensor grad_weight, Tensor grad_scale, Tensor grad_bias)",
    reference_backward,
    fake_backward,
)
_op_input_gradient = define(
    "width_conv2d_input_gradient(Tensor grad, Tensor weight, SymInt[] padding) -> Tensor",
    reference_input_gradient,
    fake_input_gradient,
)
_op_weight_gradient = define(
    "width_conv2d_weight_gradient(Tensor grad, Tensor x, SymInt[] padding) -> Tensor",
    reference_weight_gradient,
    fake_weight_gradient,
)
_op_pack = define("width_conv2d_pack(Tensor weight, bool pairs) -> Tensor", reference_pack, fake_pack)


def trains_by_winograd(x: Tensor, weight: Tensor, out_channels: int, stride, padding, dilation, groups: int) -> bool:
    """Whether the convolution and its gradients are multiplied by Winograd's products: where that is faster."""
    plain = [*stride, *dilation, groups] == [1] * 5 and tuple(weight.shape[2:]) == (3, 3) and max(padding) <= 2
    floats = x.is_cpu and x.dtype == weight.dtype == torch.float32
    return plain and floats and x.numel() > 0 and min(out_channels, x.shape[1]) >= WINOGRAD_CHANNELS


def winograd_backward(grad, x, weight, y, padding, wanted, cap) -> list[Tensor | None]:
    """To x, weight, scale and bias, where `trains_by_winograd`, without a scale; None where they are not wanted."""
    grad = grad if y is None else through_relu(grad, y, cap)
    out, inputs = grad.shape[1], x.shape[1]
    grads: list[Tensor | None] = [None] * 4
    if wanted[0]:
        grad_x = _op_input_gradient(grad, weight[:out, :inputs].contiguous(), padding)
        grads[0] = grad_x.contiguous(memory_format=memory_format(x))
    if wanted[1]:
        grads[1] = grown(_op_weight_gradient(grad, x, padding), weight.shape, weight.dtype)
    if wanted[3]:
        grads[3] = grown(grad.sum((0, 2, 3)), weight.shape[:1], grad.dtype)
    return grads


def torch_backward(grad, x, weight, y, padding, wanted, cap) -> list[Tensor | None]:
    """The same by torch, to be differentiated again."""
    grad = grad if y is None else through_relu(grad, y, cap)
    out, inputs = grad.shape[1], x.shape[1]
    settings = [out], [1, 1], padding, [1, 1], False, [0, 0], 1, [wanted[0], wanted[1], wanted[3]]
    to_x, block, bias = torch.ops.aten.convolution_backward(grad, x, weight[:out, :inputs], *settings)
    more, wider = weight.shape[0] - out, weight.shape[1] - inputs
    to_weight = F.pad(block, (0, 0, 0, 0, 0, wider, 0, more)) if wanted[1] else None
    return [to_x, to_weight, None, F.pad(bias, (0, more)) if wanted[3] else None]


class WidthConv2d(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, scale, bias, out_channels, geometry, relu, packed, cap):
        run = reference if x.dtype == torch.float64 else _op
        ctx.fast = scale is None and trains_by_winograd(x, weight, out_channels, *geometry)
        if ctx.fast and packed is None:
            block = weight[:out_channels, : x.shape[1]].contiguous()
            packed, bias = _op_pack(block, False), None if bias is None else bias[:out_channels]
        else:
            block = weight.contiguous()
        y = run(x, block, out_channels, scale, bias, *geometry, relu, packed, cap=cap)
        ctx.save_for_backward(x, weight, scale, y if relu else None)
        ctx.geometry, ctx.cap = geometry, cap
        return y

    @staticmethod
    def backward(ctx, grad):
        if ctx.fast and torch.is_grad_enabled():
            x, weight, _, y = ctx.saved_tensors
            return *torch_backward(grad, x, weight, y, ctx.geometry[1], ctx.needs_input_grad, ctx.cap), *[None] * 5
        return WidthConv2d.backward_once(ctx, grad)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward_once(ctx, grad):
        wanted = list(ctx.needs_input_grad[:4])
        if ctx.fast:
            x, weight, _, y = ctx.saved_tensors
            return *winograd_backward(grad, x, weight, y, ctx.geometry[1], wanted, ctx.cap), *[None] * 5
        run = reference_backward if grad.dtype == torch.float64 else _op_backward
        grads = run(grad, *ctx.saved_tensors, *ctx.geometry, wanted, ctx.cap)
        return *(g if w else None for g, w in zip(grads, wanted, strict=True)), *[None] * 5


def width_conv2d_pack(weight: Tensor, pairs: bool = False) -> Tensor:
    """What the kernels read in place of a weight of (out, in, h, w): see `lcs_kernels.formats.WidthWeight`."""
    ensure_loaded()
    return _op_pack(weight, pairs)


def prepacked(x: Tensor, weight: WidthWeight, groups: int) -> Tensor | None:
    """What the kernels read for this x."""
    if not x.is_cpu or x.dtype == torch.float64:
        return None
    if 1 < groups == weight.shape[0] and weight.shape[1] == 1:  # depthwise, which read the weight itself
        weight.check_unchanged()
        return None
    return weight.prepack(pairs=x.dtype == torch.bfloat16 and groups == 1)


def width_conv2d(
    x: Tensor,
    weight: Tensor | WidthWeight,
    out_channels: int | None = None,
    bias: Tensor | None = None,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    *,
    scale: Tensor | None = None,
    relu: bool = False,
    cap: float | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """`torch.nn.functional.conv2d` with weight[:out_channels, : x.shape[1] / groups], which is not sliced.

    The result is scale * convolution + bias, sums in float32, rounded once; then plus `residual`, which bfloat16 rounds
    once more, and ReLU on request, up to `cap`. Where `lcs_kernels.isa.multiplies_pairs()`, a `WidthWeight` of
    bfloat16, of one group and 16 input channels or more, is multiplied in pairs by x of bfloat16: each product is
    rounded into its sum, to nearest, in the order of that instruction, and denormals count as 0.

    A `WidthWeight` of 3 x 3 taps and one group is multiplied at stride 1 without dilation by Winograd's products (arXiv
    1509.09308) in float32 where that is faster, transformed in each call, a few channels at a time: of float32, by
    F(4 x 4, 3 x 3), 36 products in place of 144, whatever the number of images; of bfloat16, by F(6 x 6, 3 x 3), 64 in
    place of 324, but for machines with AMX. To first order a result is off by at most (c + 25) * 880 * c * 2^-24 *
    max |w| * max |x| and, before it is rounded to bfloat16, by (c + 27) * 4700 * c * 2^-24 * max |w| * max |x|, c being
    x's channels, and mostly by far less; a direct sum by 9 * c * 9 * c * 2^-24 * max |w| * max |x|. Results of a tile
    of 4 x 4 or 6 x 6 that reads a NaN or an infinity may all become NaN, as they may where c * max |w| * max |x| is
    beyond 2^110 or 2^100.

    The first layers of networks, 7 x 7 or 8 x 8 taps at stride 2 of up to 8 channels of x and 32 or more of the result,
    without dilation, of one group and a `WidthWeight` that is not of pairs, are multiplied by F(4 x 4, 4 x 4) in
    float32, where an image has 16 tiles of 4 x 4 results or more, on x split into odd and even rows and columns: 196
    products in place of 784, whose weight is transformed in each call. A result is off by at most
    (4 * c + 30) * 21700 * c * 2^-24 * max |w| * max |x|, and mostly by far less; those of a tile that reads a NaN or an
    infinity may all become NaN, as they may where c * max |w| * max |x| is beyond 2^110.

    With a `WidthWeight` a change of width repacks and allocates nothing; a tensor's block is packed in each call.
    Differentiable once, to x, a weight that is a tensor, scale, bias and residual:
    gradients of the full shapes, 0 outside of what was used. So all widths of a network share one weight (arXiv
    2110.04252). Where a gradient is wanted, a tensor is multiplied as a `WidthWeight`, and the gradients by Winograd's
    products too: of float32 on a CPU, 3 x 3 taps at stride 1, no dilation, padding up to 2, one group, no scale, and 32
    channels or more of x and of the result. That to x is off as a result of so many channels as the result has, that to
    the weight by at most (t + 30) * 1250 * t * 2^-24 * max |grad| * max |x|, t being the tiles of 4 x 4 of all images,
    and mostly by far less; where a tile holds NaN or an infinity all of it may become NaN. Others are torch's, as
    are these where they are to be differentiated again.

    A depthwise convolution multiplies its padding, too: there a weight that is not finite makes NaN.

    A width of a grouped convolution: where each group has one input channel (depthwise) there are as many groups as x
    has channels, each with weight.shape[0] / groups output channels. Otherwise the groups stay, and share the channels
    of x and of the result evenly, as `conv2d` with the sliced weight does.

    Args:
        x: (n, c, h, w), float32 or bfloat16, contiguous or channels_last (other strides are copied); float64 runs the
            eager reference and takes a float64 weight tensor (a `WidthWeight` holds none).
        weight: of the full width, (channels, in_channels / groups, kernel_h, kernel_w), float32 or bfloat16, or
            float64 as x.
        out_channels: of the result; by default all, of a depthwise convolution those that belong to x's.
        bias: (channels,), of which the first are used; float32 (or x's dtype, which is widened).
        stride, padding, dilation: one number, or one for height and one for width.
        groups: of the full width.
        scale: as bias; a norm layer with fixed statistics folds into both.
        relu: whether to clamp the result at 0.
        cap: what ReLU ends at, as 6 of ReLU6; needs `relu`.
        residual: of the result's shape, dtype and, to be read in place, strides.

    Returns:
        (n, out_channels, h', w') of x's dtype and memory format.

    Raises:
        ValueError: shapes, devices or settings that do not fit; a width that the groups do not share evenly; a cap that
            is not above 0, or without ReLU.
        TypeError: another dtype, or another weight.
        LcsUnavailableError: no compiled kernel and no way to build one (see `lcs doctor`).
    """
    geometry = (stride, padding, dilation, groups)
    run = bound_width_conv2d(x, weight, out_channels, bias, *geometry, scale=scale, relu=relu, cap=cap)
    return run(x, residual)


def bound_width_conv2d(
    x: Tensor,
    weight: Tensor | WidthWeight,
    out_channels: int | None = None,
    bias: Tensor | None = None,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    *,
    scale: Tensor | None = None,
    relu: bool = False,
    cap: float | None = None,
) -> Callable[..., Tensor]:
    """`width_conv2d`, all checked, for any x of the shape, dtype and device of this one, and any residual, which comes
    second. Raises as it does."""
    ensure_loaded()
    whole = None if isinstance(weight, Tensor) else weight
    if whole is not None:
        check_operands("width_conv2d", x, whole, "WidthWeight")
    stride, padding, dilation = geometry("width_conv2d", stride, padding, dilation)
    packed = None if whole is None else prepacked(x, whole, groups)
    version = None if whole is None else version_of(whole)
    weight = weight if whole is None else whole.weight
    out_channels, groups = width(x, weight, out_channels, groups)
    check_fits("width_conv2d", x, weight.shape, padding, dilation)
    _check_vector("scale", scale, x, weight)
    _check_vector("bias", bias, x, weight)
    check_cap("width_conv2d", relu, cap)
    sliding = (stride, padding, dilation, groups)
    slow = x.dtype == torch.float64

    def settings(scale: Tensor | None, bias: Tensor | None) -> tuple:
        return weight.contiguous(), out_channels, scale, bias, *sliding, relu, packed, None, cap

    ready = settings(scale, bias) if whole is not None and is_wide(scale, bias) else None
    size = (x.shape[0], out_channels, *output_size(x.shape, weight.shape, stride, padding, dilation))

    def run(x: Tensor, residual: Tensor | None = None) -> Tensor:
        if version is not None and weight._version != version:
            whole.check_unchanged()  # raises
        if residual is not None:
            residual = laid_out_residual("width_conv2d", residual, size, x.dtype, x, memory_format(x))
        if not slow and not wants_grad(x, weight, scale, bias, residual):
            return _op(x, *(ready or settings(widened(scale, x), widened(bias, x))), residual)
        arguments = x, weight, widened(scale, x), widened(bias, x), out_channels, sliding
        if residual is None:
            return WidthConv2d.apply(*arguments, relu, packed, cap)
        y = WidthConv2d.apply(*arguments, False, packed, None)
        return finished(y, None, None, relu, cap, residual)

    return run


def version_of(weight: WidthWeight) -> int | None:
    """Torch's count of writes to it; None where it keeps none, and in what torch.compile traces."""
    return None if torch.compiler.is_compiling() or weight.weight.is_inference() else weight.weight._version


def width(x: Tensor, weight: Tensor, out_channels: int | None, groups: int) -> tuple[int, int]:
    """The output channels and the groups of this call. Raises where x, weight and width do not fit each other."""
    name = "width_conv2d"
    for label, tensor in (("x", x), ("weight", weight)):
        if tensor.dim() != 4:
            raise ValueError(f"{name}: {label} must have 4 dimensions, got shape {tuple(tensor.shape)}")
        if tensor.dtype not in DTYPES:
            raise TypeError(
                f"{name}: {label} must be float32 or bfloat16 (float64 runs the reference), got {tensor.dtype}"
            )
    if (x.dtype == torch.float64) != (weight.dtype == torch.float64):
        raise TypeError(
            f"{name}: x is {x.dtype}, the weight {weight.dtype}; float64 x takes a float64 weight tensor (a "
            "WidthWeight holds none), and no other x does"
        )
    if x.device != weight.device:
        raise ValueError(f"{name}: x is on {x.device}, the weight on {weight.device}")
    full, inputs, channels = weight.shape[0], weight.shape[1], x.shape[1]
    if groups < 1 or full % groups:
        raise ValueError(f"{name}: a weight of {full} output channels does not have {groups} groups")
    depthwise = groups > 1 and inputs == 1
    each = full // groups
    if out_channels is None:
        out_channels = each * channels if depthwise else full
    elif isinstance(out_channels, float):
        raise TypeError(f"{name}: out_channels must be a whole number, got {out_channels!r}")
    if channels > inputs * groups or out_channels < 1 or out_channels > full:
        raise ValueError(
            f"{name}: x has {channels} channels and out_channels is {out_channels}; a weight of shape "
            f"{tuple(weight.shape)} in {groups} groups has up to {inputs * groups} and 1 to {full}"
        )
    if depthwise:
        if out_channels != each * channels:
            raise ValueError(
                f"{name}: out_channels must be {each * channels} where a depthwise convolution with {each} for each "
                f"channel of x has {channels}, got {out_channels}"
            )
        return out_channels, channels
    if channels % groups or out_channels % groups:
        raise ValueError(
            f"{name}: {channels} channels of x and {out_channels} of the result must both be multiples of the "
            f"{groups} groups"
        )
    return out_channels, groups


def _check_vector(name: str, vector: Tensor | None, x: Tensor, weight: Tensor) -> None:
    if vector is None:
        return
    if tuple(vector.shape) != (weight.shape[0],) or vector.device != x.device:
        raise ValueError(
            f"width_conv2d: {name} must be ({weight.shape[0]},) on {x.device}, got {tuple(vector.shape)} on "
            f"{vector.device}"
        )
    if vector.dtype not in (torch.float32, x.dtype):
        raise TypeError(f"width_conv2d: {name} must be float32 or {x.dtype} like x, got {vector.dtype}")
