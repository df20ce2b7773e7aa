"""Data on which a top-k can go wrong, and the comparison that forgives nothing but a NaN's payload."""

import torch

SIZES = [1, 2, 31, 32, 33, 1000, 4096, 4097, 16383, 16385, 50_001, 131_072 + 7]


def _normal(n):
    return torch.randn(n), torch.randn(n)


def _integers(n):
    return torch.randint(-3, 4, (n,)).float(), torch.randint(-3, 4, (n,)).float()


def _zeros(n):
    return torch.zeros(n), -torch.zeros(n)


def _constant(n):
    return torch.full((n,), -1.5), torch.full((n,), -1.5)


def _two_values(n):
    w = torch.where(torch.rand(n) < 0.5, 1.0, -2.0)
    return w, w.clone()


def _sorted(n):
    w = torch.linspace(-1, 1, n)
    return w, w.clone()


def _outlier(n):
    w = torch.full((n,), 1e-3)
    w[n // 2] = 1e30
    return w, w.clone()


def _denormal(n):
    return torch.randn(n) * 1e-40, torch.randn(n) * 1e-41


def _nonfinite(n):
    w0, w1 = torch.randn(n), torch.randn(n)
    w0[::7], w1[::5], w0[1::11], w1[3::13] = float("nan"), float("inf"), -float("inf"), -float("nan")
    return w0, w1


def _half_range(n):
    """Magnitudes around float16's smallest and largest, so that rounding overflows and goes denormal."""
    exponent = torch.randint(-27, 18, (n,))
    w = torch.ldexp(torch.randn(n), exponent)
    return w, w.flip(0)


KINDS = {
    f.__name__[1:]: f
    for f in (
        _normal,
        _integers,
        _zeros,
        _constant,
        _two_values,
        _sorted,
        _outlier,
        _denormal,
        _nonfinite,
        _half_range,
    )
}


def bits(x: torch.Tensor) -> torch.Tensor:
    """x as integers, every NaN the same."""
    x = torch.where(x.isnan(), torch.full_like(x, float("nan")), x)
    return x.view({8: torch.int64, 4: torch.int32, 2: torch.int16}[x.element_size()])


def assert_same(actual: torch.Tensor, expected: torch.Tensor) -> None:
    assert actual.dtype == expected.dtype and actual.shape == expected.shape
    wrong = (bits(actual) != bits(expected)).flatten().nonzero()
    assert len(wrong) == 0, f"{len(wrong)} values differ, the first at flat index {int(wrong[0])}"
