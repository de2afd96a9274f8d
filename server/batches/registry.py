"""All batches of the server. Everything here runs on the event loop, so nothing is locked."""

import asyncio
import logging
import time
from concurrent.futures import Future

from pydantic import ValidationError

from refine_server.server.batches.batch import Batch, BatchFault, Status
from refine_server.server.batches.lines import split
from refine_server.server.batches.runner import Interrupted, Runner, Send
from refine_server.server.engine.backend.protocol import Backend
from refine_server.server.files.file import File
from refine_server.server.files.objects import ObjectError, Objects, objects_of
from refine_server.server.files.registry import SWEEP_SECONDS, Files
from refine_server.server.http import errors
from refine_server.server.http.errors import ApiError
from refine_server.server.metrics.declarations import Metrics
from refine_server.server.settings import MAX_TTL_SECONDS, Settings

logger = logging.getLogger(__name__)

DEAD_SECONDS = 3 * SWEEP_SECONDS
"""Time without a beat after which a batch of another server has none that works on it."""
MAX_OPEN = 100
"""Batches of one owner that have not ended."""
RETRY_SECONDS = 60
RESTARTED = BatchFault(
    code="server_restarted",
    message="The server was stopped before the batch ended. Requests without an output were not "
    "answered; send them in a new batch.",
)


class Batches:
    """Batches by id, each for its owner alone.

    A batch that a stop of the server interrupts fails, with the outputs of what had ended if the
    server was stopped in order. With a store batches are there after a restart, and for other
    servers on the store, which leave them alone while their ``beat`` goes up; without one they end
    with the process.

    Args:
        settings: the limits, and where the store is.
        files: has the inputs, and gets the outputs.
        metrics: counts batches and their requests.
        send: sends a request.
    """

    def __init__(self, settings: Settings, files: Files, metrics: Metrics, send: Send) -> None:
        self._settings, self._files, self._metrics, self._send = settings, files, metrics, send
        self._concurrency = max(1, min(settings.max_batch_requests, settings.max_active - 1))
        self._slots = asyncio.Semaphore(self._concurrency)
        self._objects: Objects | None = None
        self._batches: dict[str, Batch] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._seen: dict[str, tuple[int, float]] = {}
        """The beats of others' batches, and when each was seen first, in monotonic seconds."""
        self._own: set[str] = set()
        """Those that began here."""
        self._unreadable: set[str] = set()
        self.is_open = False
        """Whether it is known what the store has."""
        metrics.open_batches.set_function(lambda: len(self._tasks))

    # -- life cycle ---------------------------------------------------------------------------

    async def run(self, opened: "Future[Backend]") -> None:
        """Find the batches of the store once the model is loaded, then forget what is old.

        Runs until cancelled.
        """
        await asyncio.wrap_future(opened)
        self._objects = objects_of(self._settings, "batches")
        await self._synchronise()
        self.is_open = True
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            await self._beat()
            await self._synchronise()
            for batch in list(self._batches.values()):
                if batch.status.is_final and time.time() > batch.expires_at + MAX_TTL_SECONDS:
                    await self._forget(batch)

    async def close(self) -> None:
        """End all batches, with the outputs of what has ended."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel("shutdown")
        if tasks:
            await asyncio.wait(tasks)
        if self._objects is not None:
            await self._objects.close()

    async def _beat(self) -> None:
        """Tell other servers that this one works on its batches; cancel what they cancelled."""
        for batch_id in list(self._tasks):
            batch = self._batches[batch_id]
            found = await self._read(f"{batch_id}.json")
            if found is not None and found.status is Status.CANCELLING and batch_id in self._tasks:
                await self.cancel(batch.owner, batch_id)
            batch.beat += 1
            await self._save(batch)

    async def _synchronise(self) -> None:
        """Read the batches of other servers and of former processes that are new or have not ended.

        One whose beat has not gone up for ``DEAD_SECONDS`` has no server any more, and has failed.
        """
        if self._objects is None:
            return
        try:
            names = await self._objects.names()
        except ObjectError as error:
            self._report("open", error)
            return
        for name in names:
            known = self._batches.get(name.removesuffix(".json"))
            if known is not None and (known.id in self._own or known.status.is_final):
                continue
            found = await self._read(name)
            if found is None:
                continue
            self._batches[found.id] = found
            if not found.status.is_final and self._is_dead(found):
                found.faults = [RESTARTED]
                await self._enter(found, Status.FAILED)

    async def _read(self, name: str) -> Batch | None:
        if self._objects is None:
            return None
        try:
            batch = Batch.model_validate_json(await self._objects.get(name))
        except ObjectError as error:
            self._report("open", error)
            return None
        except ValidationError:
            if name not in self._unreadable:
                logger.error("the stored batch %s is of another version, and is left out", name)
                self._unreadable.add(name)
            return None
        return batch if f"{batch.id}.json" == name else None

    def _is_dead(self, batch: Batch) -> bool:
        now = time.monotonic()
        beat, since = self._seen.get(batch.id, (-1, now))
        if beat != batch.beat:
            self._seen[batch.id] = (batch.beat, now)
            return False
        return now - since > DEAD_SECONDS

    # -- what routes call ---------------------------------------------------------------------

    async def create(self, batch: Batch, file: File) -> Batch:
        """Begin a batch.

        Args:
            batch: is new.
            file: its input.

        Raises:
            ApiError: the server is not ready, or the owner has too many batches.
        """
        self._require_open()
        own = [b for b in self._batches.values() if b.owner == batch.owner]
        if sum(not b.status.is_final for b in own) >= MAX_OPEN:
            message = f"This API key has {MAX_OPEN} batches that have not ended, the maximum."
            raise ApiError(429, message, "too_many_batches", retry_after=RETRY_SECONDS)
        self._batches[batch.id] = batch
        self._own.add(batch.id)
        await self._save(batch)
        task = asyncio.create_task(self._process(batch, file))
        self._tasks[batch.id] = task
        task.add_done_callback(lambda _: self._tasks.pop(batch.id, None))
        return batch

    def get(self, owner: str, batch_id: str) -> Batch:
        """Return an owner's batch; raise 404 for an unknown one and for another owner's."""
        self._require_open()
        batch = self._batches.get(batch_id)
        if batch is None or batch.owner != owner:
            message = f"There is no batch {batch_id!r}."
            raise ApiError(404, message, "batch_not_found", param="batch_id")
        return batch

    def list(self, owner: str) -> list[Batch]:
        """Return an owner's batches, the newest first."""
        self._require_open()
        own = [batch for batch in self._batches.values() if batch.owner == owner]
        return sorted(own, key=lambda batch: batch.created_at, reverse=True)

    async def cancel(self, owner: str, batch_id: str) -> Batch:
        """Cancel a batch. Requests that run end at their next step.

        Raises:
            ApiError: there is no such batch, or it has ended.
        """
        batch = self.get(owner, batch_id)
        if batch.status.is_final or batch.status is Status.FINALIZING:
            message = f"The batch {batch_id!r} has ended: {batch.status.value}."
            raise ApiError(409, message, "batch_ended", param="batch_id", should_retry=False)
        if batch.status is not Status.CANCELLING:
            await self._enter(batch, Status.CANCELLING)
            if task := self._tasks.get(batch_id):
                task.cancel()
        return batch

    # -- one batch ----------------------------------------------------------------------------

    async def _process(self, batch: Batch, file: File) -> None:
        runner: Runner | None = None
        try:
            async with asyncio.timeout(batch.expires_at - time.time()):
                runner = await self._start(batch, file)
                await runner.run()
            await self._finish(batch, runner, Status.COMPLETED)
        except TimeoutError:
            expired = ApiError(504, "The batch expired before this request.", "batch_expired")
            await self._finish(batch, runner, Status.EXPIRED, expired)
        except asyncio.CancelledError:
            if batch.status is Status.CANCELLING:
                cancelled = ApiError(409, "The batch was cancelled.", "batch_cancelled")
                await self._finish(batch, runner, Status.CANCELLED, cancelled)
            else:
                await self._interrupt(batch, runner)
        except Interrupted:
            await self._interrupt(batch, runner)
        except Exception as error:
            if not isinstance(error, ApiError):
                logger.exception("the batch %s failed", batch.id)
            detail = errors.as_api_error(error).body.error
            fault = BatchFault(code=detail.code, message=detail.message, param=detail.param)
            batch.faults = [fault]
            await self._finish(batch, runner, Status.FAILED)

    async def _start(self, batch: Batch, file: File) -> Runner:
        data = await self._files.read(file, "input_file_id")
        batch.total = sum(1 for _ in split(data))
        if not batch.total:
            raise ApiError(422, "input_file_id: the file has no line", "empty_file")
        if batch.total > self._settings.max_batch_lines:
            message = (
                f"input_file_id: the file has {batch.total} lines; this server allows at most "
                f"{self._settings.max_batch_lines} (--max-batch-lines)"
            )
            raise ApiError(422, message, "too_many_lines")
        await self._enter(batch, Status.IN_PROGRESS)
        return Runner(
            batch,
            data,
            send=self._send,
            require_place=lambda nbytes: self._files.require_place(batch.owner, nbytes),
            slots=self._slots,
            concurrency=self._concurrency,
            max_line_bytes=self._settings.max_body_bytes,
        )

    async def _interrupt(self, batch: Batch, runner: Runner | None) -> None:
        batch.faults = [RESTARTED]
        await self._finish(batch, runner, Status.FAILED)

    async def _finish(
        self, batch: Batch, runner: Runner | None, status: Status, left: ApiError | None = None
    ) -> None:
        """Write the outputs and enter the last status; ``left``: why requests have no answer."""
        if status is Status.COMPLETED:
            await self._enter(batch, Status.FINALIZING)
        if runner is not None:
            output, failures = await asyncio.to_thread(runner.outputs, left)
            batch.output_file_id = await self._keep(batch, output, "output")
            batch.error_file_id = await self._keep(batch, failures, "error")
        self._metrics.batch_requests.labels("completed").inc(batch.completed)
        self._metrics.batch_requests.labels("failed").inc(batch.failed)
        await self._enter(batch, status)

    async def _keep(self, batch: Batch, data: bytes, name: str) -> str | None:
        if not data:
            return None
        file = await self._files.keep(
            data,
            owner=batch.owner,
            filename=f"{batch.id}_{name}.jsonl",
            purpose="batch_output",
            ttl_seconds=batch.output_ttl_seconds,
        )
        return file.id

    # -- bookkeeping --------------------------------------------------------------------------

    def _require_open(self) -> None:
        if not self.is_open:
            raise errors.unavailable("The server is still reading its store of batches.", "loading")

    async def _enter(self, batch: Batch, status: Status) -> None:
        batch.enter(status)
        await self._save(batch)

    async def _save(self, batch: Batch) -> None:
        if self._objects is None:
            return
        try:
            await self._objects.put(f"{batch.id}.json", batch.model_dump_json().encode())
        except ObjectError as error:
            self._report("save", error)

    async def _forget(self, batch: Batch) -> None:
        self._batches.pop(batch.id, None)
        if self._objects is None:
            return
        try:
            await self._objects.delete(f"{batch.id}.json")
        except ObjectError as error:
            self._report("delete", error)

    def _report(self, operation: str, error: ObjectError) -> None:
        logger.error("%s", error)
        self._metrics.store_errors.labels(operation).inc()
