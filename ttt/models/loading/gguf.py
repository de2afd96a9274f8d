"""Rewrite GGUF files in HF layout."""

from pathlib import Path

import torch

from refine_server.ttt.models.base import ModelError


def write_hf(source: Path, target: Path, dtype: torch.dtype = torch.float32) -> None:
    """Write a GGUF file's weights, dequantised, and its tokenizer into a directory.

    Raises:
        ModelError: the file cannot be read.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    try:
        model = AutoModelForCausalLM.from_pretrained(
            source.parent,
            gguf_file=source.name,
            quantization_config=GgufConfig(dequantize=True),
            dtype=dtype,
        )
        tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    except Exception as error:  # transformers raises many kinds; each means: not to be had
        raise ModelError(f"cannot read {source}: {error}") from error
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
