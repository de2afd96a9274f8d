"""What each of several replicas on one machine gets of it."""

from dataclasses import dataclass

from refine_server.server.settings import Settings, SettingsError

MEMORY_SHARE = 0.9
"""Share of the free memory that all replicas may take together."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Shares:
    """What each of several replicas on a machine gets of it."""

    cpus: int
    memory_bytes: int
    devices: tuple[str, ...] = ()
    """CUDA devices, one for each replica; empty: they run on the CPU."""


def shares_of(settings: Settings, cpus: int, free_bytes: int) -> Shares:
    """Divide the machine among the replicas.

    Args:
        settings: the number of replicas, and their devices.
        cpus: the machine's cores.
        free_bytes: memory that is free on it.

    Raises:
        SettingsError: there are not as many devices as replicas, or they cannot listen.
    """
    if settings.unix_socket is not None:
        raise SettingsError(
            "--unix-socket (REFINE_UNIX_SOCKET): replicas listen on --host and --port only"
        )
    devices = tuple(part.strip() for part in settings.devices.split(",") if part.strip())
    if devices and len(devices) != settings.replicas:
        raise SettingsError(
            f"--devices (REFINE_DEVICES): {len(devices)} devices for {settings.replicas} replicas; "
            "name one for each replica, such as 0,1"
        )
    whole = settings.memory_bytes or int(MEMORY_SHARE * free_bytes)
    return Shares(
        cpus=settings.threads or max(1, cpus // settings.replicas),
        memory_bytes=whole // settings.replicas,
        devices=devices,
    )
