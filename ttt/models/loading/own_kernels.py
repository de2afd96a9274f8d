"""Transformers' models without the kernels of other packages."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_fla() -> Iterator[None]:
    """Within it, transformers imports its models as if flash-linear-attention were not installed.

    Otherwise their delta-rule layers call fla's public functions wherever it is installed, which
    fail on a CPU and in fp32. Only the check of a newly loaded model runs these layers: a slow and
    exact form serves it best.
    """
    installed = sys.modules.get("fla")
    # None makes ``import fla`` fail.
    sys.modules["fla"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules["fla"]
        if installed is not None:
            sys.modules["fla"] = installed
