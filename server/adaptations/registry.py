"""Adapted documents as resources: adapt once, ask many.

Everything here runs on the event loop, so there are no locks over what it keeps; what blocks (the
store) runs in a thread. Documents are kept in memory up to a budget: the least recently used go
first, those in use stay, and what the store has comes back when it is asked for.
"""

import asyncio
import contextlib
import hashlib
import json
import secrets
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from refine_server.server.access.keys import Keyring
from refine_server.server.adaptations.adaptation import Adaptation, Status
from refine_server.server.adaptations.storage import Vault
from refine_server.server.adaptations.store import StoreError
from refine_server.server.engine.engine import Engine
from refine_server.server.engine.job import Job
from refine_server.server.http import errors
from refine_server.server.http.errors import ApiError
from refine_server.server.metrics import Metrics
from refine_server.server.settings import Settings
from refine_server.ttt.interface.events import (
    AdaptationEnded,
    AdaptationStep,
    DocumentAdapted,
    DocumentRead,
)
from refine_server.ttt.interface.requests import AdaptRequest

if TYPE_CHECKING:  # it would import torch
    from refine_server.ttt.document import AdaptedDocument

SWEEP_SECONDS = 5.0


class Adaptations:
    """All adaptations of this server.

    Args:
        engine: does the adapting.
        settings: budget, times to live, and where the store is.
        metrics: what is counted.
        keyring: whose quotas on kept bytes hold.
    """

    def __init__(
        self, engine: Engine, settings: Settings, metrics: Metrics, keyring: Keyring
    ) -> None:
        self._engine, self._settings, self._metrics = engine, settings, metrics
        self._keyring = keyring
        self._vault = Vault(settings, metrics)
        self._by_id: dict[str, Adaptation] = {}
        self._by_key: dict[str, Adaptation] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self.is_open = False

    # -- life cycle ---------------------------------------------------------------------------

    async def run(self) -> None:
        """Bring back what the store has, then let go of what expires; runs until cancelled."""
        backend = await asyncio.wrap_future(self._engine.opened)
        for manifest in await self._vault.open(backend):
            adaptation = self._vault.revive(manifest)
            if adaptation is not None and adaptation.id not in self._by_id:
                self._register(adaptation)
        self.is_open = True
        while True:
            self._show()
            await asyncio.sleep(SWEEP_SECONDS)
            await self.sweep()

    async def close(self, seconds: float) -> None:
        """Let running adaptations end, which the engine sees to, and write down what they made."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=seconds)
        for task in self._tasks:
            task.cancel()
        await self._vault.close()

    def require_open(self) -> None:
        """Raise 503 while it is not known yet what the store has."""
        if not self.is_open:
            self._engine.ready()
            raise errors.unavailable("The store is being read.", "loading")

    # -- what routes ask for ------------------------------------------------------------------

    async def create(
        self,
        request: AdaptRequest,
        *,
        request_id: str,
        ttl_seconds: float | None = None,
        priority: int = 0,
        timeout_seconds: float | None = None,
    ) -> Adaptation:
        """Adapt to a document, or join whoever of the same owner adapts or adapted to it alike.

        Raises:
            RequestError: the document cannot be served.
            ApiError: the server is not ready, the queue is full, or the owner keeps too many.
        """
        self.require_open()
        key = self._key(request)
        known = self._by_key.get(key)
        if known is not None:
            self._metrics.cache_hits.inc()
            await asyncio.shield(known.admitted)
            known.touch()
            return known
        self._require_place(request.owner)
        self._metrics.cache_misses.inc()
        ttl = self._settings.adaptation_ttl_seconds if ttl_seconds is None else ttl_seconds
        new_id = f"adapt-{secrets.token_hex(16)}"
        adaptation = Adaptation(new_id, request.owner, key, request.adapt, ttl)
        longest = self._settings.request_timeout_seconds
        timeout = min(timeout_seconds or longest, longest)
        job = adaptation.job = Job(request, request_id, timeout, priority)
        self._register(adaptation)
        try:
            await self._engine.submit(job)
        except BaseException as error:
            self._forget(adaptation)
            self._refuse(adaptation, error)
            raise
        adaptation.document_tokens = job.tokens
        adaptation.admitted.set_result(None)
        self._start(adaptation, job)
        return adaptation

    def get(self, owner: str, adaptation_id: str) -> Adaptation:
        """An owner's adaptation; 404 for what is not there and for what is another's, alike."""
        self.require_open()
        adaptation = self._by_id.get(adaptation_id)
        if adaptation is None or adaptation.owner != owner or self._is_expired(adaptation):
            raise errors.no_adaptation(adaptation_id)
        return adaptation

    def list(self, owner: str) -> list[Adaptation]:
        """An owner's adaptations, the newest first."""
        own = [a for a in self._by_id.values() if a.owner == owner and not self._is_expired(a)]
        return sorted(own, key=lambda a: a.created_at, reverse=True)

    async def delete(self, owner: str, adaptation_id: str) -> Adaptation:
        """Cancel it if it runs, and forget it; who uses it now may go on to the end."""
        adaptation = self.get(owner, adaptation_id)
        self._forget(adaptation)
        if adaptation.job is not None and not adaptation.status.is_last:
            self._engine.cancel(adaptation.job, "deleted")
            adaptation.job.deliver(errors.no_adaptation(adaptation_id))
            adaptation.change(Status.CANCELLED)
        await self._vault.delete(adaptation)
        return adaptation

    @contextlib.asynccontextmanager
    async def use(self, owner: str, adaptation_id: str) -> "AsyncIterator[AdaptedDocument]":
        """The adapted document, kept in memory while it is used; waits until it is ready.

        Raises:
            ApiError: it is not there, it failed, or there is no room for it.
        """
        adaptation = self.get(owner, adaptation_id)
        adaptation.users += 1
        adaptation.touch()
        try:
            if await adaptation.settled() is not Status.READY:
                raise errors.adaptation_failed(adaptation_id, adaptation.error)
            async with adaptation.loading:
                if adaptation.document is None:
                    await self._load(adaptation)
            assert adaptation.document is not None
            yield adaptation.document
        finally:
            adaptation.users -= 1
            adaptation.touch()
            self._trim()

    # -- memory -------------------------------------------------------------------------------

    async def _load(self, adaptation: Adaptation) -> None:
        self._trim(room=adaptation.nbytes)
        if self._resident + adaptation.nbytes > self._settings.adaptation_memory_bytes:
            raise errors.unavailable("Other adaptations are using all memory.", "memory_in_use")
        try:
            adaptation.document = await self._vault.load(adaptation.id)
        except StoreError as error:
            self._forget(adaptation)
            raise ApiError(409, str(error), "adaptation_lost") from error

    @property
    def _resident(self) -> int:
        return sum(a.nbytes for a in self._by_id.values() if a.document is not None)

    def _trim(self, room: int = 0) -> None:
        """Let go of the least recently used documents until the budget leaves ``room`` bytes."""
        budget = self._settings.adaptation_memory_bytes - room
        resident = [a for a in self._by_id.values() if a.document is not None]
        # One that is being written down is neither in the store yet nor lost: it waits its turn.
        idle = [a for a in resident if not a.users and a.status.is_last]
        excess = self._resident - budget
        for adaptation in sorted(idle, key=lambda a: a.last_used):
            if excess <= 0:
                break
            excess -= adaptation.nbytes
            adaptation.document = None
            self._metrics.cache_evictions.inc()
            if not adaptation.stored:
                self._forget(adaptation)
        self._show()

    async def sweep(self) -> None:
        """Forget what has expired."""
        for adaptation in [a for a in self._by_id.values() if self._is_expired(a)]:
            self._forget(adaptation)
            await self._vault.delete(adaptation)

    def _is_expired(self, adaptation: Adaptation) -> bool:
        expires = adaptation.expires
        return expires is not None and not adaptation.users and time.monotonic() >= expires

    # -- one adaptation's way -----------------------------------------------------------------

    def _start(self, adaptation: Adaptation, job: Job) -> None:
        task = asyncio.create_task(self._follow(adaptation, job))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _follow(self, adaptation: Adaptation, job: Job) -> None:
        try:
            async for event in self._engine.events(job):
                match event:
                    case DocumentRead():
                        adaptation.change(Status.ADAPTING)
                    case AdaptationStep(report):
                        adaptation.steps.append(report)
                        adaptation.change()
                    case AdaptationEnded(report):
                        adaptation.report = report
                    case DocumentAdapted(document):
                        await self._keep(adaptation, document)
        except Exception as error:
            adaptation.error = errors.as_api_error(error)
            self._by_key.pop(adaptation.key or "", None)
            adaptation.expires = time.monotonic() + adaptation.ttl_seconds
            adaptation.change(Status.FAILED)
        finally:
            adaptation.job = None
            self._show()

    async def _keep(self, adaptation: Adaptation, document: "AdaptedDocument") -> None:
        adaptation.document, adaptation.nbytes = document, document.nbytes
        if document.report.stopped == "shutdown":
            self._by_key.pop(adaptation.key or "", None)  # it is less than was asked for
            adaptation.key = None
        adaptation.stored = await self._vault.save(adaptation, document)
        adaptation.change(Status.READY)
        adaptation.touch()
        self._trim()

    def _refuse(self, adaptation: Adaptation, error: BaseException) -> None:
        """Those who joined in the meantime are told the same."""
        told = error if isinstance(error, Exception) else errors.shutting_down()
        adaptation.admitted.set_exception(told)
        adaptation.admitted.exception()  # it counts as seen, should nobody have joined

    # -- bookkeeping --------------------------------------------------------------------------

    def _register(self, adaptation: Adaptation) -> None:
        self._by_id[adaptation.id] = adaptation
        if adaptation.key is not None:
            self._by_key[adaptation.key] = adaptation

    def _forget(self, adaptation: Adaptation) -> None:
        self._by_id.pop(adaptation.id, None)
        if adaptation.key is not None and self._by_key.get(adaptation.key) is adaptation:
            del self._by_key[adaptation.key]

    def _require_place(self, owner: str) -> None:
        own, most = self.list(owner), self._settings.max_adaptations
        if len(own) >= most:
            message = f"You keep {most} adaptations, as many as you may; delete some."
            raise ApiError(429, message, "too_many_adaptations", retry_after=60)
        quota = self._keyring.quotas_of(owner).adaptation_bytes
        if quota is None:
            return
        # How large one becomes is known at its end: until then it counts as the largest so far.
        largest = max((a.nbytes for a in self._by_id.values()), default=0)
        if sum(a.nbytes if a.status.is_last else largest for a in own) + largest > quota:
            message = f"This key's quota adaptation_bytes ({quota}) is used up; delete some."
            raise ApiError(429, message, "quota_adaptation_bytes", retry_after=60)

    def _key(self, request: AdaptRequest) -> str:
        """Equal for requests whose results are equal, bit for bit, and whose owner is the same."""
        fingerprint = self._engine.ready().fingerprint
        config = request.adapt.model_dump(mode="json")
        parts = [fingerprint, request.owner, request.document, config]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def _show(self) -> None:
        counts = dict.fromkeys(Status, 0)
        for adaptation in self._by_id.values():
            counts[adaptation.status] += 1
        for status, count in counts.items():
            self._metrics.adaptations.labels(status.value).set(count)
        self._metrics.adaptation_bytes.set(self._resident)
