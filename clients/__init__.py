"""Python SDK: a server asked over HTTP, from synchronous and asynchronous code."""

from refine_server.clients.async_client import AsyncRefineClient
from refine_server.clients.client import RefineClient
from refine_server.clients.errors import ClientError

__all__ = ["AsyncRefineClient", "ClientError", "RefineClient"]
