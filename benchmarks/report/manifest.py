"""What a report says of its run: settings, model, versions and command."""

import platform
import sys
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from refine_server.clients import RefineClient
from refine_server.clients.options import AdaptOptions
from refine_server.ttt.interface.config import merged
from refine_server.ttt.interface.presets import PRESETS

PACKAGES = ("refine-server", "httpx", "numpy")


@dataclass(frozen=True)
class Manifest:
    """Describes a run. Its results depend on ``settings``: resuming requires the same ones."""

    kind: str
    settings: dict[str, Any]
    model: dict[str, Any]
    server: str
    command: str
    started: str
    client: dict[str, str] = field(default_factory=dict)

    @classmethod
    def now(cls, kind: str, settings: dict[str, Any], client: RefineClient) -> "Manifest":
        """Describe a run that starts now, against the server of a client."""
        return cls(
            kind=kind,
            settings=settings,
            model=client.models()[0].model_dump(
                exclude={"created", "object", "owned_by", "parent"}
            ),
            server=client.version().version,
            command=" ".join(["refine-server", *sys.argv[1:]]),
            started=datetime.now(UTC).isoformat(timespec="seconds"),
            client={
                "python": platform.python_version(),
                "machine": platform.machine(),
                **{name: version(name) for name in PACKAGES},
            },
        )


def effective(adapt: AdaptOptions, client: RefineClient) -> dict[str, Any]:
    """Return all fields of ``adapt``: the given ones, and the server's defaults for the others."""
    chosen = merged(PRESETS.get(adapt.get("preset") or "", {}), adapt)
    on = chosen.get("on", {"kind": "document"})
    given = merged(client.adapt_defaults(on["kind"]), chosen)
    return {name: value for name, value in given.items() if name not in ("objective", "preset")}
