"""JSON as its standard has it, which knows no NaN."""

import json
import math
from typing import Any


def dumps(value: Any, **options: Any) -> str:
    """As of `json`, but null for numbers that are not finite."""
    return json.dumps(_finite(value), allow_nan=False, **options)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
