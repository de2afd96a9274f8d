"""From a name to a model that can be served: embedded models, a directory, or a hub id."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import load_file
from torch import Tensor

from refine_server.ttt.models import embedded
from refine_server.ttt.models.base import CausalLM, ModelError
from refine_server.ttt.models.delta_net import DeltaNet, DeltaNetConfig
from refine_server.ttt.models.fla import FlaCausalLM, FlaConfig
from refine_server.ttt.models.gated_delta_net import GatedDeltaNet, GatedDeltaNetConfig
from refine_server.ttt.models.lact import LaCT, LaCTConfig
from refine_server.ttt.models.memory import require_memory
from refine_server.ttt.models.overlay import Overlay

M = TypeVar("M", bound=Any)

FLA_LAYOUT: dict[str, tuple[Callable[[Any], FlaCausalLM], type[FlaConfig]]] = {
    "delta_net": (DeltaNet, DeltaNetConfig),
    "gated_deltanet": (GatedDeltaNet, GatedDeltaNetConfig),
    "lact_swiglu": (LaCT, LaCTConfig),
}
"""Model types that transformers does not know, with the family and the configuration of each."""


def build(config: dict[str, Any], weights: dict[str, Tensor]) -> CausalLM:
    """A model from its configuration and its state dict.

    Args:
        config: the HF or fla configuration, ``model_type`` included.
        weights: tensors by state-dict name. Their dtype becomes the model's.

    Raises:
        ModelError: a configuration that cannot be computed, or weights that do not fit it.
    """
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise ModelError("the configuration names no model_type")
    dtype = _common_dtype(weights)
    if model_type not in FLA_LAYOUT:
        return Overlay(_with_weights(_transformers_model(config, dtype), weights))
    family, parse = FLA_LAYOUT[model_type]
    with torch.device("meta"):
        model = family(parse.from_dict(config)).to(dtype)
    return _with_weights(model, weights)


def load(
    path_or_id: str | Path, *, dtype: torch.dtype | None = None, device: str = "cpu"
) -> CausalLM:
    """A model with its tokenizer: ``smollm2``, ``tiny``, a directory in HF layout, or a hub id.

    Only safetensors are read and no code from a checkpoint is ever run.

    Args:
        path_or_id: what to load.
        dtype: of the base weights; None keeps the checkpoint's.
        device: where to put them.

    Raises:
        ModelError: it does not exist, cannot be read, or is of no supported family.
    """
    directory = _directory(str(path_or_id))
    config = _read_config(directory)
    weights = _read_weights(directory, dtype)
    if dtype is not None:
        weights = {name: w.to(dtype) for name, w in weights.items()}
    model = build(config, weights).to(device)
    model.name = str(path_or_id)
    model.tokenizer = _read_tokenizer(directory)
    return model


def _directory(name: str) -> Path:
    if name in embedded.MODELS:
        return embedded.MODELS[name]()
    if Path(name).is_dir():
        return Path(name)
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        known = ", ".join(embedded.MODELS)
        raise ModelError(
            f"{name!r} is no directory, no hub id (owner/name) and not one of: {known}"
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.model"]))
    except Exception as error:  # the hub's client raises many kinds; each means: not to be had
        raise ModelError(f"cannot fetch {name!r} from the hub: {error}") from error


def _read_config(directory: Path) -> dict[str, Any]:
    path = directory / "config.json"
    try:
        config = json.loads(path.read_text())
    except FileNotFoundError:
        raise ModelError(f"{directory} holds no config.json") from None
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot read {path}: {error}") from error
    if not isinstance(config, dict):
        raise ModelError(f"{path} is not a JSON object")
    return config


def _read_weights(directory: Path, dtype: torch.dtype | None) -> dict[str, Tensor]:
    index = directory / "model.safetensors.index.json"
    if index.is_file():
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        files = [directory / name for name in names]
    else:
        files = [directory / "model.safetensors"]
    weights: dict[str, Tensor] = {}
    for file in files:
        if not file.is_file():
            raise ModelError(f"{directory} lacks {file.name} (only safetensors are read)")
    require_memory(files, dtype)
    for file in files:
        try:
            weights.update(load_file(file))
        except Exception as error:
            raise ModelError(f"cannot read {file}: {error}") from error
    return weights


def _read_tokenizer(directory: Path) -> Any:
    from transformers import AutoTokenizer, PreTrainedConfig

    try:
        # A configuration of its own keeps transformers from guessing at a model type that it does
        # not know (fla's); which tokenizer it is stands in tokenizer_config.json.
        own = PreTrainedConfig() if _read_config(directory)["model_type"] in FLA_LAYOUT else None
        return AutoTokenizer.from_pretrained(directory, config=own, trust_remote_code=False)
    except Exception as error:
        raise ModelError(f"cannot load a tokenizer from {directory}: {error}") from error


def _common_dtype(weights: dict[str, Tensor]) -> torch.dtype:
    if not weights:
        raise ModelError("there are no weights")
    dtypes = {w.dtype for w in weights.values() if w.is_floating_point()}
    return max(dtypes, key=lambda d: d.itemsize) if dtypes else torch.float32


def _transformers_model(config: dict[str, Any], dtype: torch.dtype) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        parsed = AutoConfig.for_model(**config)
        return AutoModelForCausalLM.from_config(parsed, dtype=dtype, trust_remote_code=False)
    except (ValueError, KeyError, TypeError) as error:
        kind = config.get("model_type")
        raise ModelError(f"model_type {kind!r} is not supported: {error}") from error


def _with_weights(model: M, weights: dict[str, Tensor]) -> M:
    """Hand the tensors to the module without copying; every parameter must be there."""
    tied = model.tied if isinstance(model, CausalLM) else model.config.tie_word_embeddings
    incomplete = model.load_state_dict(
        {n: w for n, w in weights.items() if not n.endswith("rotary_emb.inv_freq")},
        strict=False,
        assign=True,
    )
    missing = [n for n in incomplete.missing_keys if not (tied and n == "lm_head.weight")]
    if missing or incomplete.unexpected_keys:
        raise ModelError(
            f"the weights do not fit the configuration: missing {missing[:3]}, "
            f"unexpected {incomplete.unexpected_keys[:3]}"
        )
    if tied:
        embedding = model.embedding if isinstance(model, CausalLM) else model.get_input_embeddings()
        model.lm_head.weight = embedding.weight
    model.requires_grad_(False)
    model.eval()
    return model
