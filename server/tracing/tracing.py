"""Traces of the server: what the app and the middleware need of them."""

from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from refine_server.server.engine.observer import EngineObserver
from refine_server.server.http.request_log import PROBES

if TYPE_CHECKING:  # it is an optional dependency
    from fastapi.telemetry import TelemetryConfig
    from opentelemetry.sdk.trace import TracerProvider

OFF: "TelemetryConfig" = {
    "tracing": False,
    "metrics": False,
    "logs": False,
    "auto_configure": False,
}
"""FastAPI's own telemetry without traces; its logs would have texts of requests in them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TraceIds:
    """Where a request belongs to."""

    trace_id: str
    """32 hexadecimal digits, for the log."""
    traceparent: str
    """W3C Trace Context's header, of the request's own span."""


class Tracing:
    """Records a span for each request, and its work in the engine as children of that."""

    def __init__(self, provider: "TracerProvider") -> None:
        self._provider = provider

    def observer(self) -> EngineObserver:
        """Return what records the work of the engine."""
        from refine_server.server.tracing.engine_spans import EngineSpans

        return EngineSpans(self._provider)

    def of_requests(self, root_path: str) -> "TelemetryConfig":
        """Return FastAPI's configuration: a span for each HTTP request that is no probe.

        Args:
            root_path: the path below which a proxy publishes the server.
        """

        def is_probe(scope: MutableMapping[str, Any]) -> bool:
            path: str = scope["path"]
            return path.removeprefix(root_path) in PROBES

        return {
            **OFF,
            "tracing": True,
            "operation_spans": False,
            "tracer_provider": self._provider,
            "exclude": is_probe,
        }

    def current(self) -> TraceIds | None:
        """Return the ids of the request that is being served; None for one without a span."""
        from opentelemetry import trace

        of = trace.get_current_span().get_span_context()
        if not of.is_valid:
            return None
        trace_id, span_id = trace.format_trace_id(of.trace_id), trace.format_span_id(of.span_id)
        return TraceIds(
            trace_id=trace_id, traceparent=f"00-{trace_id}-{span_id}-{of.trace_flags:02x}"
        )

    def close(self) -> None:
        """Export what is left; it blocks, for as long as OpenTelemetry's time-outs allow."""
        self._provider.shutdown()
