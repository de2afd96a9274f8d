"""Small objects by name under an fsspec URL, read and written in a thread of their own."""

import asyncio
import os
import re
import secrets
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import fsspec
from fsspec.implementations.local import LocalFileSystem

from refine_server.server.settings import Settings

T = TypeVar("T")

NAME = re.compile(r"[a-z]+[-_][0-9a-f]{32}\.(json|data)")
"""Names of objects: an id that this server made, and what the object has of it."""


class ObjectError(Exception):
    """The objects cannot be reached, or one of them is not there; the message says why."""


class Objects:
    """The objects of a folder. Each is written as a whole or not at all.

    Args:
        url: the folder, for example ``file:///var/lib/refine/files`` or ``s3://bucket/files``.
        timeout_seconds: longest time for one read or write.
    """

    def __init__(self, url: str, timeout_seconds: float) -> None:
        self._url, self._timeout = url, timeout_seconds
        self._thread = ThreadPoolExecutor(1, "refine-objects")

    async def put(self, name: str, data: bytes) -> None:
        """Write an object."""
        await self._run(lambda folder: folder.put(name, data))

    async def get(self, name: str) -> bytes:
        """Read an object."""
        return await self._run(lambda folder: folder.get(name))

    async def delete(self, name: str) -> None:
        """Remove an object; do nothing if it is not there."""
        await self._run(lambda folder: folder.delete(name))

    async def names(self) -> list[str]:
        """Return the names of all objects."""
        return await self._run(lambda folder: folder.names())

    async def close(self) -> None:
        """Wait for the write that runs, and drop those that have not begun."""
        await asyncio.to_thread(self._thread.shutdown, cancel_futures=True)

    async def _run(self, work: Callable[["_Folder"], T]) -> T:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._timeout):
                return await loop.run_in_executor(self._thread, lambda: work(_Folder(self._url)))
        except TimeoutError:
            raise ObjectError(f"the store took longer than {self._timeout:g} s") from None
        except Exception as error:  # file systems raise whatever they like
            raise ObjectError(f"the store failed: {error}") from error


def objects_of(settings: Settings, name: str) -> Objects | None:
    """Return the objects of a kind in the server's store; None if it keeps nothing there."""
    if settings.store == "none":
        return None
    root = settings.store
    if not root:
        from refine_server.ttt.models.bundled import cache_directory  # torch is loaded by now

        root = cache_directory().absolute().as_uri()
    return Objects(f"{root.rstrip('/')}/{name}", settings.store_timeout_seconds)


class _Folder:
    """The blocking side of ``Objects``."""

    def __init__(self, url: str) -> None:
        self._fs, root = fsspec.url_to_fs(url)
        self._root = root.rstrip("/")

    def put(self, name: str, data: bytes) -> None:
        path = self._path(name)
        if not isinstance(self._fs, LocalFileSystem):
            self._fs.pipe_file(path, data)  # object stores write atomically
            return
        self._fs.makedirs(self._root, exist_ok=True)
        partial = f"{path}.{secrets.token_hex(4)}"
        with open(partial, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)

    def get(self, name: str) -> bytes:
        data: bytes = self._fs.cat_file(self._path(name))
        return data

    def delete(self, name: str) -> None:
        path = self._path(name)
        if self._fs.exists(path):
            self._fs.rm_file(path)

    def names(self) -> list[str]:
        self._fs.invalidate_cache()
        if not self._fs.exists(self._root):
            return []
        names = (path.rsplit("/", 1)[-1] for path in self._fs.ls(self._root, detail=False))
        return sorted(name for name in names if NAME.fullmatch(name))

    def _path(self, name: str) -> str:
        if not NAME.fullmatch(name):
            raise ValueError(f"{name!r} is not the name of an object")
        return f"{self._root}/{name}"
