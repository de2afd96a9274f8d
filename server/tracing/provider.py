"""Whether traces are recorded, and where they are sent: by OpenTelemetry's standard variables."""

import os
from importlib.metadata import version
from typing import TYPE_CHECKING

from refine_server.server.settings import SettingsError

if TYPE_CHECKING:  # it is an optional dependency
    from opentelemetry.sdk.trace import TracerProvider

ENDPOINTS = "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
EXPORTER = "OTEL_TRACES_EXPORTER"
PROTOCOLS = "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"
HTTP = "http/protobuf"


def provider_from_environment() -> "TracerProvider | None":
    """Return what records and exports spans, None unless the variables ask for it.

    They do if one of ``ENDPOINTS`` is set, or if ``EXPORTER`` is ``otlp`` or ``console``. The rest
    (headers, time-outs, sampling, attributes of the service) is read by OpenTelemetry itself.

    Raises:
        SettingsError: a variable has a value that is not supported, or a package is missing.
    """
    exporter = os.environ.get(EXPORTER, "").strip().lower()
    if not exporter and any(os.environ.get(name) for name in ENDPOINTS):
        exporter = "otlp"
    is_disabled = os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    if is_disabled or exporter in ("", "none"):
        return None
    if exporter not in ("otlp", "console"):
        raise SettingsError(f"{EXPORTER}: {exporter!r} must be otlp, console or none")
    protocol = next((os.environ[name] for name in PROTOCOLS if os.environ.get(name)), HTTP)
    if exporter == "otlp" and protocol != HTTP:
        raise SettingsError(f"{PROTOCOLS[0]}: {protocol!r} is not supported; {HTTP} is")
    try:
        return _provider(exporter)
    except ModuleNotFoundError as error:
        raise SettingsError(
            f"the variables OTEL_… ask for traces, and {error.name} is not installed: "
            "pip install 'refine-server[otel]'"
        ) from None


def _provider(exporter: str) -> "TracerProvider":
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter

    about = {"service.version": version("refine-server")}
    if not os.environ.get("OTEL_SERVICE_NAME"):
        about["service.name"] = "refine-server"
    provider = TracerProvider(resource=Resource.create(about))
    chosen = OTLPSpanExporter() if exporter == "otlp" else ConsoleSpanExporter()
    provider.add_span_processor(BatchSpanProcessor(chosen))
    return provider
