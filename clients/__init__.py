"""Python SDK: a synchronous and an asynchronous client of a server's HTTP API."""

from refine_server.clients.async_client import AsyncRefineClient
from refine_server.clients.client import RefineClient
from refine_server.clients.errors import ClientError

__all__ = ["AsyncRefineClient", "ClientError", "RefineClient"]
