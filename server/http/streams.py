"""What streaming routes share."""

from collections.abc import Sequence
from typing import Any


def event_stream_docs(events: Sequence[str]) -> dict[str, Any]:
    """OpenAPI's description of a stream of server-sent events with these names."""
    return {
        "description": "Server-sent events.",
        "content": {
            "text/event-stream": {
                # As FastAPI itself describes one event of a stream (OpenAPI 3.2).
                "itemSchema": {
                    "type": "object",
                    "properties": {
                        "event": {"type": "string", "enum": list(events)},
                        "data": {"type": "string", "contentMediaType": "application/json"},
                    },
                    "required": ["event", "data"],
                }
            }
        },
    }
