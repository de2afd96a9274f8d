"""Load a model by name: a bundled one, a directory or a hub id."""

import gc
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from refine_server.ttt.models import bundled
from refine_server.ttt.models.base import CausalLM, ModelError
from refine_server.ttt.models.families import native_family, transformers_family
from refine_server.ttt.models.layers.packing import release_files
from refine_server.ttt.models.loading.host_memory import require_device_memory, require_memory
from refine_server.ttt.models.loading.own_kernels import without_fla

CONFIGURATION_FILES = ["*.json", "*.jinja", "*.model", "merges.txt", "vocab.txt"]
"""Files of a checkpoint that describe the model, its tokenizer and its chat template."""

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
)

VOCABULARY_FILES = ("tokenizer.*", "vocab.*", "*.model", "tekken.json")
"""Files of which a checkpoint with a tokenizer has at least one."""


def build(config: dict[str, Any], weights: dict[str, Tensor]) -> CausalLM:
    """Build a model of a native family from its configuration and its state dict.

    Args:
        config: the configuration, ``model_type`` included.
        weights: tensors by state-dict name. Their dtype becomes the model's.

    Raises:
        ModelError: a configuration that cannot be computed, or weights that do not fit it.
    """
    model_type = model_type_of(config)
    family = native_family(model_type)
    if family is None:
        raise ModelError(f"model_type {model_type!r} belongs to no native family")
    return _with_weights(family.skeleton(config).to(_common_dtype(weights)), weights)


def wrap(causal_lm: Any) -> CausalLM:
    """Take over a model of transformers, which gives up its modules.

    Raises:
        ModelError: its architecture would be computed wrongly.
    """
    causal_lm.eval()
    return transformers_family(causal_lm.config.model_type)(causal_lm)


@contextmanager
def _uncollected() -> Iterator[None]:
    """Suspend garbage collection: what importing transformers makes lives on, so collections find
    nothing and take a tenth of the time."""
    collected = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collected:
            gc.enable()


@_uncollected()
def load(
    path_or_id: str | Path,
    *,
    dtype: torch.dtype | None = None,
    device: str = "cpu",
    window: int | None = None,
) -> CausalLM:
    """Load a model and its tokenizer by name (``bundled.MODELS``), HF directory or hub id.

    Only safetensors are read and no code from a checkpoint is ever run.

    Args:
        path_or_id: what to load.
        dtype: of the base weights; None keeps the checkpoint's.
        device: where to put them.
        window: the most tokens that attention sees (``CausalLM.limit_window``); None: all.

    Raises:
        ModelError: it does not exist, cannot be read, or is of no supported family.
    """
    directory = find(str(path_or_id))
    config = read_config(directory)
    files = _weight_files(directory)
    is_native, target = native_family(model_type_of(config)) is not None, torch.device(device)
    require_device_memory(files, dtype, target)
    if not (is_native and target.type == "cuda"):  # which are read straight to the GPU
        require_memory(files, dtype)
    if is_native:
        weights = _read_weights(files, device)
        if dtype is not None:
            weights = {name: w.to(dtype) for name, w in weights.items()}
        model = build(config, weights).to(device)
    else:
        model = wrap(from_transformers(directory, dtype, device))
    if window is not None:
        model.limit_window(window)
    model.name = str(path_or_id)
    model.tokenizer = read_tokenizer(directory)
    return model


def model_type_of(config: dict[str, Any]) -> str:
    """Return the model type that a configuration names."""
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise ModelError("config.json has no model_type")
    return model_type


def from_transformers(directory: Path, dtype: torch.dtype | None, device: str) -> Any:
    """Load transformers' own model, which knows how a checkpoint's tensors map to its modules."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        with without_fla():
            model, found = AutoModelForCausalLM.from_pretrained(
                directory,
                dtype="auto" if dtype is None else dtype,
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=True,
                output_loading_info=True,
            )
    except Exception as error:  # transformers raises many kinds; each means: not to be had
        raise ModelError(f"cannot load a model from {directory}: {error}") from error
    if found["missing_keys"] or found["mismatched_keys"]:
        missing, odd = sorted(found["missing_keys"])[:3], sorted(found["mismatched_keys"])[:3]
        raise ModelError(
            f"the weights do not match config.json: missing {missing}, of a different shape {odd}"
        )
    release_files(model)
    return model.to(device)


def find(name: str, *, weights: bool = True) -> Path:
    """Find the directory of a model: a bundled one, a path, or what the hub has under an id.

    Without ``weights`` only the hub's configuration and tokenizer are fetched.
    """
    if name in bundled.MODELS:
        return bundled.MODELS[name]()
    if Path(name).is_dir():
        return Path(name)
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        known = ", ".join(bundled.MODELS)
        raise ModelError(
            f"{name!r} is not a directory, a hub id (owner/name) or one of the models {known}"
        )
    from huggingface_hub import snapshot_download

    try:
        wanted = [*CONFIGURATION_FILES, "*.safetensors"] if weights else CONFIGURATION_FILES
        return Path(snapshot_download(name, allow_patterns=wanted))
    except Exception as error:  # the hub's client raises many kinds; each means: not to be had
        raise ModelError(f"cannot fetch {name!r} from the hub: {error}") from error


def read_config(directory: Path) -> dict[str, Any]:
    """Read config.json."""
    return _read_json(directory / "config.json")


def _read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; raise ModelError, which names the file, for anything else."""
    try:
        found = json.loads(path.read_text("utf-8-sig"))
    except FileNotFoundError:
        raise ModelError(f"{path.parent} has no {path.name}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"cannot read {path}: {error}") from error
    if not isinstance(found, dict):
        raise ModelError(f"{path} is not a JSON object")
    return found


def _weight_files(directory: Path) -> list[Path]:
    """List the safetensors of a model; raise ModelError if one is missing."""
    index = directory / "model.safetensors.index.json"
    files = _files_of(index) if index.is_file() else [directory / "model.safetensors"]
    for file in files:
        if not file.is_file():
            raise ModelError(f"{directory} has no {file.name} (only safetensors are supported)")
    return files


def _files_of(index: Path) -> list[Path]:
    """List the files in which the index of a sharded checkpoint says that tensors are."""
    places = _read_json(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        raise ModelError(f"{index} has no weight_map from tensors to files")
    names = sorted(set(places.values()))
    outside = [name for name in names if Path(name).name != name]
    if outside:
        raise ModelError(f"{index} names {outside[0]!r}, which is no file beside it")
    return [index.parent / name for name in names]


def _read_weights(files: Sequence[Path], device: str) -> dict[str, Tensor]:
    weights: dict[str, Tensor] = {}
    for file in files:
        try:
            weights.update(load_file(file, device))
        except Exception as error:
            raise ModelError(f"cannot read {file}: {error}") from error
    return weights


def read_tokenizer(directory: Path) -> Any:
    """Load the tokenizer of a model's directory.

    Raises:
        ModelError: there is none, or it is damaged.
    """
    if not any(any(directory.glob(pattern)) for pattern in VOCABULARY_FILES):
        raise ModelError(
            f"{directory} has no tokenizer: a checkpoint needs a tokenizer.json (or "
            "tokenizer.model, or vocab.json with merges.txt) beside its config.json"
        )
    try:
        if _plain_tokenizer(directory):
            # What AutoTokenizer would choose, without its import of every model's configuration.
            from transformers import PreTrainedTokenizerFast

            return PreTrainedTokenizerFast.from_pretrained(directory, local_files_only=True)
        from transformers import AutoTokenizer, PreTrainedConfig

        # An empty configuration keeps transformers from guessing at a model type that it does not
        # know; tokenizer_config.json names the tokenizer's class.
        native = native_family(model_type_of(read_config(directory))) is not None
        config = PreTrainedConfig() if native else None
        return AutoTokenizer.from_pretrained(directory, config=config, trust_remote_code=False)
    except ModelError:
        raise
    except Exception as error:
        for name in TOKENIZER_FILES:  # says which one is damaged, if one is
            if (directory / name).is_file():
                _read_json(directory / name)
        raise ModelError(f"cannot load a tokenizer from {directory}: {error}") from error


def has_chat_template(directory: Path) -> bool:
    """Return whether a model's tokenizer has a chat template."""
    if (directory / "chat_template.jinja").is_file():
        return True
    path = directory / "tokenizer_config.json"
    return path.is_file() and bool(_read_json(path).get("chat_template"))


def _plain_tokenizer(directory: Path) -> bool:
    """Return whether ``tokenizer.json`` is all there is: no class that changes what it does."""
    path = directory / "tokenizer_config.json"
    if not path.is_file() or not (directory / "tokenizer.json").is_file():
        return False
    config = _read_json(path)
    plain = ("TokenizersBackend", "PreTrainedTokenizerFast")
    return config.get("tokenizer_class") in plain and "auto_map" not in config


def _common_dtype(weights: dict[str, Tensor]) -> torch.dtype:
    if not weights:
        raise ModelError("the checkpoint has no weights")
    dtypes = {w.dtype for w in weights.values() if w.is_floating_point()}
    return max(dtypes, key=lambda d: d.itemsize) if dtypes else torch.float32


def _with_weights(model: CausalLM, weights: dict[str, Tensor]) -> CausalLM:
    """Hand the tensors to the module without copying; raise ModelError unless all are there."""
    incomplete = model.load_state_dict(
        {n: w for n, w in weights.items() if not n.endswith("rotary_emb.inv_freq")},
        strict=False,
        assign=True,
    )
    release_files(model)
    tied = model.config.tie_word_embeddings
    missing = [n for n in incomplete.missing_keys if not (tied and n == "lm_head.weight")]
    if missing or incomplete.unexpected_keys:
        raise ModelError(
            f"the weights do not match config.json: missing {missing[:3]}, "
            f"unexpected {incomplete.unexpected_keys[:3]}"
        )
    if tied:
        model.lm_head.weight = model.embedding.weight
    model.requires_grad_(False)
    model.pack_weights()
    model.eval()
    return model
