"""Open the backend that the settings ask for, without importing torch before."""

from refine_server.server.engine.backend.protocol import Backend
from refine_server.server.settings import Settings


def open_backend(settings: Settings) -> Backend:
    """Load the model. Call it in the thread that will run the model.

    Raises:
        ModelError: the model does not exist or cannot be loaded, or the device cannot be used.
    """
    # It imports torch, which takes seconds.
    from refine_server.server.engine.backend.model_backend import ModelBackend

    return ModelBackend(settings)
