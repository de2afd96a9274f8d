"""Which class computes which model type; a family's classes register where they are declared."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, Self, TypeVar

import torch

from refine_server.ttt.models.base import CausalLM

Model = TypeVar("Model", bound=CausalLM)

OTHERS = "any Llama-like model type of transformers"
"""Stands for all model types of transformers that no family registered by name."""


class Config(Protocol):
    """A family's configuration: the fields that change what is computed."""

    @classmethod
    def from_dict(cls, config: dict[str, Any]) -> Self:
        """Read config.json; raise ModelError for a setting that would be computed wrongly."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NativeFamily:
    """A family that transformers does not know: modules, names and configuration are its own."""

    model: type[CausalLM]
    config: type[Config]

    def skeleton(self, config: dict[str, Any]) -> CausalLM:
        """Build the modules on torch's meta device, which knows shapes and no numbers."""
        with torch.device("meta"):
            return self.model(self.config.from_dict(config))


_NATIVE: dict[str, NativeFamily] = {}
_TRANSFORMERS: dict[str, type[CausalLM]] = {}


def register_native(
    *model_types: str, config: type[Config]
) -> Callable[[type[Model]], type[Model]]:
    """Decorate a class that is constructed from a ``config`` and computes these model types."""

    def register(model: type[Model]) -> type[Model]:
        family = NativeFamily(model=model, config=config)
        _NATIVE.update(dict.fromkeys(model_types, family))
        return model

    return register


def register_transformers(*model_types: str) -> Callable[[type[Model]], type[Model]]:
    """Decorate a class that is constructed from a transformers model of these model types."""

    def register(model: type[Model]) -> type[Model]:
        _TRANSFORMERS.update(dict.fromkeys(model_types, model))
        return model

    return register


def native_family(model_type: str) -> NativeFamily | None:
    """Return the family of a model type that transformers does not know, or None."""
    return _NATIVE.get(model_type)


def transformers_family(model_type: str) -> type[CausalLM]:
    """Return the class that takes over a transformers model of this model type."""
    return _TRANSFORMERS.get(model_type, _TRANSFORMERS[OTHERS])


def model_types() -> dict[str, list[str]]:
    """List the model types of every family, by the family's name."""
    classes = {**{name: native.model for name, native in _NATIVE.items()}, **_TRANSFORMERS}
    found: dict[str, list[str]] = {}
    for model_type, model in classes.items():
        found.setdefault(model.family, []).append(model_type)
    return {family: sorted(types) for family, types in found.items()}
