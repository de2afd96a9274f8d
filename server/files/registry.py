"""All files of the server. Everything here runs on the event loop, so nothing is locked."""

import asyncio
import logging
from concurrent.futures import Future
from typing import Literal

from pydantic import ValidationError

from refine_server.server.access.keys import Keyring
from refine_server.server.engine.backend.protocol import Backend
from refine_server.server.files.content import NoTextError, decode_text
from refine_server.server.files.file import DocumentInfo, File, Purpose
from refine_server.server.files.objects import NAME, ObjectError, Objects, objects_of
from refine_server.server.http import errors
from refine_server.server.http.errors import ApiError
from refine_server.server.metrics.declarations import Metrics
from refine_server.server.settings import Settings

logger = logging.getLogger(__name__)

SWEEP_SECONDS = 5.0
"""Time between two sweeps of what has expired."""
MAX_FILES = 10_000
"""Files of one owner."""


class Files:
    """Files by id, each for its owner alone.

    With a store they survive a restart, and their contents are not kept in memory. Without one, and
    where the store fails, they are kept in memory and end with the process.

    Args:
        settings: the limits, times to live, and where the store is.
        metrics: counts files and failures of the store.
        keyring: has the owners' quotas of bytes.
    """

    def __init__(self, settings: Settings, metrics: Metrics, keyring: Keyring) -> None:
        self._settings, self._metrics, self._keyring = settings, metrics, keyring
        self._objects: Objects | None = None
        self._files: dict[str, File] = {}
        self._contents: dict[str, bytes] = {}
        """Of files that are not in the store."""
        self._unreadable: set[str] = set()
        """Descriptions that another version wrote."""
        self.is_open = False
        """Whether it is known what the store has."""
        metrics.files.set_function(lambda: len(self._files))
        metrics.file_bytes.set_function(lambda: self._used)

    # -- life cycle ---------------------------------------------------------------------------

    async def run(self, opened: "Future[Backend]") -> None:
        """Find the files of the store once the model is loaded, then delete what expires.

        Runs until cancelled.
        """
        await asyncio.wrap_future(opened)
        self._objects = objects_of(self._settings, "files")
        await self._synchronise()
        self.is_open = True
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            await self._synchronise()
            await self.sweep()

    async def _synchronise(self) -> None:
        """Find files that are new in the store; forget those that another server has deleted."""
        if self._objects is None:
            return
        stored = [id for id in self._files if id not in self._contents]
        try:
            names = await self._objects.names()
        except ObjectError as error:
            self._report("open", error)
            return
        for name in names:
            if name.endswith(".json") and name.removesuffix(".json") not in self._files:
                await self._find(name)
        for file_id in stored:
            if f"{file_id}.json" not in names:
                self._files.pop(file_id, None)

    async def _find(self, name: str) -> File | None:
        """Return the file whose description the store has under a name, and know it from now on."""
        if self._objects is None or name in self._unreadable:
            return None
        try:
            file = File.model_validate_json(await self._objects.get(name))
        except ObjectError:
            return None  # there is none, or the store fails, which the sweep reports
        except ValidationError:
            logger.error("the stored file %s is of another version, and is left out", name)
            self._unreadable.add(name)
            return None
        return self._files.setdefault(file.id, file) if f"{file.id}.json" == name else None

    async def close(self) -> None:
        """End the store's thread."""
        if self._objects is not None:
            await self._objects.close()

    async def sweep(self) -> None:
        """Delete what has expired."""
        for file in [file for file in self._files.values() if file.is_expired]:
            await self._forget(file)

    # -- what routes call ---------------------------------------------------------------------

    async def create(
        self,
        data: bytes,
        *,
        owner: str,
        filename: str,
        purpose: Purpose,
        ttl_seconds: float | None = None,
        document: DocumentInfo | None = None,
    ) -> File:
        """Keep a file.

        Args:
            data: its contents.
            owner: may use it.
            filename: as the client named it.
            purpose: what it is for.
            ttl_seconds: how long it is kept; None: as long as the server keeps files.
            document: what is known of the file that the text in ``data`` was read from.

        Raises:
            ApiError: the server is not ready, or there is no room for it.
        """
        self._require_open()
        self.require_place(owner, len(data))
        return await self.keep(
            data,
            owner=owner,
            filename=filename,
            purpose=purpose,
            ttl_seconds=ttl_seconds,
            document=document,
        )

    async def keep(
        self,
        data: bytes,
        *,
        owner: str,
        filename: str,
        purpose: Purpose,
        ttl_seconds: float | None = None,
        document: DocumentInfo | None = None,
    ) -> File:
        """Keep a file for which ``require_place`` has found room, as ``create`` does."""
        ttl = self._settings.file_ttl_seconds if ttl_seconds is None else ttl_seconds
        file = await asyncio.to_thread(File.of, data, owner, filename, purpose, ttl, document)
        self._files[file.id], self._contents[file.id] = file, data
        if await self._save(file, data):
            self._contents.pop(file.id, None)
        if file.id not in self._files:  # it was deleted meanwhile
            await self._forget(file)
        return file

    async def get(self, owner: str, file_id: str, param: str) -> File:
        """Return an owner's file, also one that another server on the store has kept.

        Raises:
            ApiError: 404 for an unknown one, one that has expired, and another owner's alike;
                ``param`` is the field that names it.
        """
        self._require_open()
        file = self._files.get(file_id)
        if file is None and NAME.fullmatch(f"{file_id}.json"):
            file = await self._find(f"{file_id}.json")
        if file is None or file.owner != owner or file.is_expired:
            message = f"{param}: there is no file {file_id!r}. It may have expired; upload it again"
            raise ApiError(404, message, "file_not_found", param=param)
        return file

    def list(self, owner: str, order: Literal["asc", "desc"] = "desc") -> list[File]:
        """Return an owner's files, by default the newest first."""
        self._require_open()
        own = [file for file in self._files.values() if file.owner == owner and not file.is_expired]
        return sorted(own, key=lambda file: file.created_at, reverse=order == "desc")

    async def read(self, file: File, param: str) -> bytes:
        """Return the contents of a file.

        Raises:
            ApiError: they are lost, because the store failed or was changed.
        """
        data = self._contents.get(file.id)
        if data is not None:
            return data
        try:
            if self._objects is None:
                raise ObjectError("there is no store")
            data = await self._objects.get(f"{file.id}.data")
            if not await asyncio.to_thread(file.has, data):
                raise ObjectError(f"the stored file {file.id} does not match its checksum")
        except ObjectError as error:
            self._report("load", error)
            message = f"{param}: the contents of {file.id!r} are lost. Upload the file again"
            raise ApiError(409, message, "file_lost", param=param) from error
        return data

    async def read_text(self, file: File, param: str) -> str:
        """Return the text of a file.

        Raises:
            ApiError: it has none, or its contents are lost.
        """
        data = await self.read(file, param)
        if file.document is not None:
            return data.decode()
        try:
            return decode_text(data)
        except NoTextError as error:
            raise ApiError(422, f"{param}: {error}", "unsupported_file", param=param) from None

    async def delete(self, owner: str, file_id: str) -> None:
        """Delete an owner's file; requests that have read it go on."""
        await self._forget(await self.get(owner, file_id, "file_id"))

    # -- bookkeeping --------------------------------------------------------------------------

    @property
    def _used(self) -> int:
        return sum(file.bytes for file in self._files.values())

    def _require_open(self) -> None:
        if not self.is_open:
            raise errors.unavailable("The server is still reading its store of files.", "loading")

    def require_place(self, owner: str, nbytes: int) -> None:
        """Raise ApiError unless one more file of an owner, of this size, can be kept."""
        own = self.list(owner)
        quota = self._keyring.quotas_of(owner).file_bytes
        if len(own) >= MAX_FILES:
            reason, code = f"This API key keeps {MAX_FILES} files, the maximum", "too_many_files"
        elif quota is not None and sum(file.bytes for file in own) + nbytes > quota:
            reason = f"The quota file_bytes ({quota}) of this API key is used up"
            code = "quota_file_bytes"
        elif self._used + nbytes > self._settings.file_bytes:
            reason = f"Files take all of --file-bytes ({self._settings.file_bytes})"
            code = "file_storage_full"
        else:
            return
        raise ApiError(413, f"{reason}. Delete files first.", code, should_retry=False)

    async def _save(self, file: File, data: bytes) -> bool:
        if self._objects is None:
            return False
        try:
            await self._objects.put(f"{file.id}.data", data)
            await self._objects.put(f"{file.id}.json", file.model_dump_json().encode())
        except ObjectError as error:
            self._report("save", error)
            return False
        return True

    async def _forget(self, file: File) -> None:
        self._files.pop(file.id, None)
        self._contents.pop(file.id, None)
        if self._objects is None:
            return
        try:
            await self._objects.delete(f"{file.id}.json")  # without it there is no file
            await self._objects.delete(f"{file.id}.data")
        except ObjectError as error:
            self._report("delete", error)

    def _report(self, operation: str, error: ObjectError) -> None:
        logger.error("%s", error)
        self._metrics.store_errors.labels(operation).inc()
