"""Rewrite checkpoints: with another type, in one layout, as safetensors."""

import json
import shutil
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file

from refine_server.ttt.models.base import ModelError
from refine_server.ttt.models.families import native_family
from refine_server.ttt.models.loading.gguf import write_hf
from refine_server.ttt.models.loading.loader import (
    find,
    from_transformers,
    load,
    model_type_of,
    read_config,
    read_tokenizer,
)


def convert(source: str, target: Path, dtype: torch.dtype | None) -> None:
    """Write a model as a directory that ``load`` reads, whole or not at all.

    Args:
        source: a bundled model's name, a directory, a hub id or a GGUF file.
        target: a directory that does not exist yet.
        dtype: of the weights; None keeps the source's.

    Raises:
        ModelError: the source cannot be read, or the target exists.
    """
    if target.exists():
        raise ModelError(f"{target} already exists; name a new directory")
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        if Path(source).suffix == ".gguf":
            write_hf(Path(source), partial, dtype or torch.float32)
        elif native_family(model_type_of(read_config(find(source, weights=False)))) is not None:
            _write_native(source, partial, dtype)
        else:
            directory = find(source)
            from_transformers(directory, dtype, "cpu").save_pretrained(partial)
            read_tokenizer(directory).save_pretrained(partial)
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_native(source: str, target: Path, dtype: torch.dtype | None) -> None:
    model = load(source, dtype=dtype)
    config = read_config(find(source, weights=False))
    config["dtype"] = str(model.dtype).removeprefix("torch.")
    config.pop("torch_dtype", None)
    (target / "config.json").write_text(json.dumps(config, indent=2))
    weights = model.state_dict()
    if model.tied:
        weights.pop("lm_head.weight")
    save_file({n: w.contiguous() for n, w in weights.items()}, target / "model.safetensors")
    model.tokenizer.save_pretrained(target)
