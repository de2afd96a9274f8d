"""How the server writes its log: lines for people on a terminal, JSON for machines."""

import logging
import sys
from typing import Literal

from pythonjsonlogger.core import RESERVED_ATTRS
from pythonjsonlogger.json import JsonFormatter
from typing_extensions import override

LogFormat = Literal["auto", "text", "json"]

QUIET = ("httpx", "fsspec", "transformers", "huggingface_hub", "urllib3", "asyncio")
"""Libraries of which only warnings are logged."""


KNOWN = (*RESERVED_ATTRS, "message", "asctime", "color_message")
"""Attributes of a record that are no fields; the last is a copy of uvicorn's messages in colour."""


class TextFormatter(logging.Formatter):
    """A line for people: the message, and then every further field as ``name=value``."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    @override
    def formatMessage(self, record: logging.LogRecord) -> str:
        fields = vars(record).items()
        more = (f"{name}={value}" for name, value in fields if name not in KNOWN)
        return " ".join([super().formatMessage(record), *more])


def configure(level: str, log_format: LogFormat) -> None:
    """Write the log to stderr.

    Args:
        level: the minimum severity of what is logged.
        log_format: ``text`` lines, ``json`` objects, or ``auto``: text on a terminal only.
    """
    if log_format == "auto":
        log_format = "text" if sys.stderr.isatty() else "json"
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(TextFormatter() if log_format == "text" else json_formatter())
    logging.basicConfig(level=level.upper(), handlers=[handler])
    for library in QUIET:
        logging.getLogger(library).setLevel(logging.WARNING)


def json_formatter() -> logging.Formatter:
    """Return what writes a record as one JSON object in one line, the time in UTC."""
    return JsonFormatter(
        ["levelname", "name", "message"],
        reserved_attrs=KNOWN,
        rename_fields={"levelname": "level", "name": "logger", "exc_info": "exception"},
        timestamp="time",
    )
