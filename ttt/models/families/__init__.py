"""Model families, a package each: importing this package imports, and so registers, all of them."""

from importlib import import_module
from pkgutil import iter_modules

from refine_server.ttt.models.families.registry import (
    NativeFamily,
    model_types,
    native_family,
    transformers_family,
)

__all__ = ["NativeFamily", "model_types", "native_family", "transformers_family"]

for _found in iter_modules(__path__, f"{__name__}."):
    if _found.ispkg:
        import_module(_found.name)
