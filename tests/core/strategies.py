"""Weights on which a top-k can go wrong, for hypothesis: small arrays value by value, large ones by a recipe."""

import numpy as np
from hypothesis import strategies as st

from .oracle import encode

DTYPES = ["float32", "bfloat16", "float16"]
EDGES = [edge + off for edge in (32, 4096, 16384, 2 * 16384, 4 * 16384) for off in (-1, 0, 1)]  # block, sample, chunks

bit_patterns = st.integers(0, 2**32 - 1).map(lambda bits: float(np.uint32(bits).view(np.float32)))
special = st.sampled_from(
    [0.0, -0.0, 1.0, -1.0, 2.0, -2.0, 1e-45, -1e-40, 6e-8, 6e-5, 65504.0, 65520.0, 3.4e38, -3.4e38]
    + [float("inf"), -float("inf"), float("nan"), -float("nan")]
)
values = special | bit_patterns
alphas = st.sampled_from([0.0, 1.0, 0.5, 0.3, 0.025]) | st.floats(0, 1, width=32)
sizes = st.integers(1, 70) | st.sampled_from(EDGES)


@st.composite
def weights(draw: st.DrawFn, n: int) -> np.ndarray:
    """n float64 values that float32 holds: some of a few drawn ones (ties), the rest bell-shaped around a scale."""
    if n <= 40 and draw(st.booleans()):
        return np.array(draw(st.lists(values, min_size=n, max_size=n)))
    few = np.array(draw(st.lists(values, min_size=1, max_size=6)))
    share, scale = draw(st.sampled_from([0.0, 0.1, 0.9, 1.0])), draw(st.sampled_from([-140, -14, 0, 15, 127]))
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    bell = np.ldexp(rng.standard_normal(n), scale)
    return np.where(rng.random(n) < share, rng.choice(few, n), bell)


@st.composite
def lines(draw: st.DrawFn, n: int, dtype: str | None = None) -> tuple[np.ndarray, np.ndarray | None]:
    """Both ends of a line as lcs_core takes them; the second may be the first, or None for a point."""
    dtype = dtype or draw(st.sampled_from(DTYPES))
    with np.errstate(all="ignore"):
        w0 = encode(draw(weights(n)), dtype)
        kind = draw(st.sampled_from(["line", "line", "equal", "point"]))
        return w0, {"equal": w0, "point": None}.get(kind, encode(draw(weights(n)), dtype) if kind == "line" else None)


@st.composite
def distinct_weights(draw: st.DrawFn, n: int) -> np.ndarray:
    """float32 of distinct magnitudes between 2^-30 and 2^31, in any order."""
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    magnitudes = rng.choice(np.arange(0x30800000, 0x4F000000, 1009, dtype=np.uint32), n, replace=False).view(np.float32)
    return magnitudes * rng.choice(np.array([-1, 1], np.float32), n)
