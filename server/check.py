"""What a server would find out only when it starts, or when the first request comes."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from refine_server.server.access.keys import Keyring
from refine_server.server.adaptations.connection import default_url
from refine_server.server.adaptations.store.errors import StoreError
from refine_server.server.adaptations.store.files import Files
from refine_server.server.memory.device import memory_of
from refine_server.server.process import StartError, open_listener
from refine_server.server.settings import Settings, SettingsError
from refine_server.server.tracing.provider import provider_from_environment
from refine_server.ttt.models.base import ModelError

GIB = 2**30


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """What was found out about one part."""

    part: str
    text: str
    """What there is, or what is wrong and which option to change."""
    is_good: bool


def check(settings: Settings) -> Iterator[Finding]:
    """Try everything that a server with these settings needs; no weights are read.

    A store is made and written to, and of a model on the hub the configuration is fetched.
    """
    parts: dict[str, Callable[[Settings], str]] = {
        "keys": _keys,
        "traces": _traces,
        "store": _store,
        "device": _device,
        "model": _model,
        "address": _address,
    }
    for part, look in parts.items():
        try:
            yield Finding(part=part, text=look(settings), is_good=True)
        except (SettingsError, StoreError, ModelError, StartError) as problem:
            yield Finding(part=part, text=str(problem), is_good=False)


def _keys(settings: Settings) -> str:
    keyring = Keyring.of(settings)
    if keyring.is_open:
        return "none: everybody who can reach the server may use it"
    return f"{len(keyring.principals)} names"


def _traces(_: Settings) -> str:
    provider = provider_from_environment()
    if provider is None:
        return "off"
    provider.shutdown()
    return "on"


def _store(settings: Settings) -> str:
    if settings.store == "none":
        return "none: adaptations are kept in memory only"
    url = settings.store or default_url()
    try:
        files = Files(url)
        if files.is_local:
            files.make_root()
        files.probe()
    except StoreError as error:
        raise StoreError(f"--store (REFINE_STORE) {url}: {error}") from None
    return url


def _device(settings: Settings) -> str:
    from refine_server.server.engine.backend.model_backend import use_device

    use_device(settings.device)
    return settings.device


def _model(settings: Settings) -> str:
    import torch

    from refine_server.ttt.footprint.figures import measure

    memory_bytes = settings.memory_bytes or memory_of(_usable_device(settings)).default_budget()
    dtype = None if settings.dtype == "auto" else getattr(torch, settings.dtype)
    try:
        figures = measure(settings.model, memory_bytes=memory_bytes, dtype=dtype)
    except ModelError as error:
        raise ModelError(f"--model (REFINE_MODEL): {error}") from None
    if figures.longest_document < 1:
        raise ModelError(
            f"--memory-bytes (REFINE_MEMORY_BYTES): {memory_bytes / GIB:.2f} GiB are not enough "
            f"for {settings.model}, whose weights take {figures.weight_bytes / GIB:.2f} GiB"
        )
    return (
        f"{settings.model} ({figures.family}), weights {figures.weight_bytes / 2**20:,.0f} MiB; "
        f"documents of up to {figures.longest_document} tokens can be adapted to in "
        f"{memory_bytes / GIB:.2f} GiB"
    )


def _usable_device(settings: Settings) -> str:
    """Return the device, or the CPU in place of one that is reported as unusable anyway."""
    try:
        return _device(settings)
    except ModelError:
        return "cpu"


def _address(settings: Settings) -> str:
    try:
        open_listener(settings).close()
    except StartError as error:
        raise StartError(
            f"{error}. Choose another address (--host, --port, --unix-socket), or stop what listens"
        ) from None
    if settings.unix_socket is not None:
        settings.unix_socket.unlink()
        return f"unix:{settings.unix_socket}"
    return f"{settings.host}:{settings.port}"
