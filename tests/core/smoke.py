"""One call of lcs_core where torch cannot be imported; run by ctest."""

import sys

sys.modules["torch"] = None

import lcs_core  # noqa: E402
import numpy as np  # noqa: E402

w, mask_bits = lcs_core.interpolate_prune(np.array([3, -1, 2], np.float32), None, 0.0, 2)
assert w.tolist() == [3, 0, 2] and mask_bits.tolist() == [0b101]
print(lcs_core.isa())
