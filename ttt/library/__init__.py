"""refine_server: adapt a language model to a document, then ask it.

>>> from refine_server import load
>>> model = load("tiny")
>>> adapted = model.adapt("The harbour code is amber. ...", query="What is the harbour code?")
>>> adapted.answer()
'amber'

This is the library's front door; ``refine-server serve`` offers the same over HTTP.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # it imports torch, and the command line must start without it
    from refine_server.model import Model

__all__ = ["load"]


def load(name: str, *, device: str = "cpu", dtype: str | None = None) -> "Model":
    """Load a model with its tokenizer.

    Args:
        name: a bundled model (``smollm2``, ``tiny``, ``tiny-nested``), a directory or a hub id.
        device: a torch device, for example ``cpu`` or ``cuda:0``.
        dtype: type of the base weights, for example ``bfloat16``; None keeps the checkpoint's.

    Raises:
        ModelError: the model does not exist, or cannot be loaded.
    """
    from refine_server.model import load_model

    return load_model(name, device=device, dtype=dtype)
