"""What interpolate_prune computes, in plain NumPy and written apart from the PyTorch reference.

A bfloat16 array is uint16 with its bits, as in lcs_core; `name` is "float32", "bfloat16" or "float16".
"""

import numpy as np

# mantissa bits with the hidden one, exponent of the smallest normal number, first magnitude that is infinite
FORMATS = {"float32": (24, -126, 2.0**128), "bfloat16": (8, -126, 2.0**128), "float16": (11, -14, 2.0**16)}


def name_of(array: np.ndarray) -> str:
    return "bfloat16" if array.dtype == np.uint16 else array.dtype.name


def encode(values: np.ndarray, name: str) -> np.ndarray:
    """float64 or float32 values, rounded to the nearest of the format, ties to even, as lcs_core takes them."""
    values = round_to(values, name)
    if name == "bfloat16":
        return (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    return values.astype(name)


def decode(array: np.ndarray) -> np.ndarray:
    """float32 values of what `encode` makes."""
    if array.dtype == np.uint16:
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float32)


def round_to(values: np.ndarray, name: str) -> np.ndarray:
    """By scaling each value so that the format's unit is 1; exact in float64 up to the rounding itself."""
    digits, smallest, too_large = FORMATS[name]
    values = np.asarray(values, np.float64)
    exponent = np.maximum(np.frexp(np.where(np.isfinite(values), values, 1))[1] - 1, smallest)
    rounded = np.ldexp(np.rint(np.ldexp(values, digits - 1 - exponent)), exponent - digits + 1)
    return np.where(np.abs(rounded) >= too_large, np.copysign(np.inf, values), rounded)


def blend(w0: np.ndarray, w1: np.ndarray | None, alpha: float) -> np.ndarray:
    """float32: two products and a sum, each rounded; a point is w0 itself."""
    if w1 is None:
        return decode(w0)
    at = np.float32(alpha)
    with np.errstate(all="ignore"):
        return (np.float32(1) - at) * decode(w0) + at * decode(w1)


def keep_mask(w: np.ndarray, keep: int) -> np.ndarray:
    """The last `keep` of a stable ascending sort of the magnitudes, in which NumPy puts NaN last and all NaN equal."""
    order = np.argsort(np.abs(w).ravel(), kind="stable")
    mask = np.zeros(w.size, bool)
    mask[order[w.size - keep :]] = True
    return mask


def pack(mask: np.ndarray) -> np.ndarray:
    """Bit i % 32 of word i // 32 is mask[i]."""
    padded = np.zeros(-(-mask.size // 32) * 32, bool)
    padded[: mask.size] = mask
    return np.packbits(padded, bitorder="little").view("<u4")


def unpack(mask_bits: np.ndarray, n: int) -> np.ndarray:
    return np.unpackbits(mask_bits.view(np.uint8), bitorder="little")[:n].astype(bool)


def interpolate_prune(
    w0: np.ndarray, w1: np.ndarray | None, alpha: float, keep: int, name: str
) -> tuple[np.ndarray, np.ndarray]:
    """w as the values (float64) that `name` holds, and the boolean mask."""
    w = round_to(blend(w0, w1, alpha), name)
    mask = keep_mask(w, keep)
    return np.where(mask.reshape(w.shape), w, 0), mask


def interpolate_prune_foreach(
    w0s: list[np.ndarray], w1s: list[np.ndarray] | None, alpha: float, keep: int | list[int], name: str
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """`keep` a list: one count per layer; a number: over all layers, one behind the other."""
    ends = list(zip(w0s, w1s or [None] * len(w0s), strict=True))
    if isinstance(keep, list):
        pairs = [interpolate_prune(w0, w1, alpha, k, name) for (w0, w1), k in zip(ends, keep, strict=True)]
        return [w for w, _ in pairs], [mask for _, mask in pairs]
    ws = [round_to(blend(w0, w1, alpha), name) for w0, w1 in ends]
    mask = keep_mask(np.concatenate([w.ravel() for w in ws]), keep)
    masks = np.split(mask, np.cumsum([w.size for w in ws])[:-1])
    return [np.where(m.reshape(w.shape), w, 0) for w, m in zip(ws, masks, strict=True)], masks


def backward(
    grad: np.ndarray, w0: np.ndarray, w1: np.ndarray, alpha: float, mask: np.ndarray, name: str
) -> tuple[np.ndarray, np.ndarray, float, float]:
    """The gradients to w0 and w1 as values that `name` holds, to alpha in float64, and a bound on the op's error there.

    The op adds float32 terms, each rounded twice, in 16 sums of at most 1024 per chunk; a denormal term also loses up
    to 2^-150.
    """
    kept, at = np.where(mask.reshape(grad.shape), decode(grad), np.float32(0)), np.float32(alpha)
    terms = kept.astype(np.float64) * (decode(w1).astype(np.float64) - decode(w0))
    bound = np.abs(terms).sum() * (1024 + 3) * 2.0**-24 + grad.size * 2.0**-149
    return (
        round_to((np.float32(1) - at) * kept, name),
        round_to(at * kept, name),
        float(terms.sum()),
        float(bound),
    )
