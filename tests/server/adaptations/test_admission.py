"""Joining, leaving and deleting an adaptation at critical moments, without HTTP."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from refine_server.server.access.keys import Keyring
from refine_server.server.adaptations.adaptation import Adaptation, Status
from refine_server.server.adaptations.registry import Adaptations
from refine_server.server.adaptations.storage import Saved, Storage
from refine_server.server.memory.budget import MemoryBudget
from refine_server.server.settings import Settings
from refine_server.ttt.interface.errors import RequestError
from refine_server.ttt.interface.requests import AdaptRequest
from support.engines import serving, until
from support.fake_backend import FakeBackend

pytestmark = pytest.mark.anyio

Open = Callable[..., AbstractAsyncContextManager[Adaptations]]


@pytest.fixture
def registry(fake: FakeBackend) -> Open:
    """Return a function that opens the adaptations of an engine on the scripted backend."""

    @asynccontextmanager
    async def open(store: str = "none") -> AsyncIterator[Adaptations]:
        settings = Settings(model="fake", store=store)
        async with serving(fake.open, model="fake") as served:
            keyring = Keyring.of(settings)
            adaptations = Adaptations(
                served.engine, settings, served.metrics, keyring, MemoryBudget()
            )
            running = asyncio.create_task(adaptations.run())
            await until(lambda: adaptations.is_open)
            try:
                yield adaptations
            finally:
                fake.gate.set()
                running.cancel()
                await adaptations.close(5.0)

    return open


@pytest.fixture
def encoding(fake: FakeBackend, monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Encoding waits until this is set."""
    encode, gate = fake.encode, threading.Event()

    def held(work: Any) -> Any:
        if isinstance(work, AdaptRequest):
            assert gate.wait(10)
        return encode(work)

    monkeypatch.setattr(fake, "encode", held)
    return gate


def create(adaptations: Adaptations, document: str) -> "asyncio.Task[Adaptation]":
    return asyncio.create_task(adaptations.create(AdaptRequest(document), request_id="r"))


async def until_one_is_listed(adaptations: Adaptations) -> None:
    async with asyncio.timeout(10):
        while len(await adaptations.list("local")) != 1:
            await asyncio.sleep(0.005)


async def test_work_whose_clients_left_before_it_was_queued_is_dropped(
    registry: Open, fake: FakeBackend, encoding: threading.Event
) -> None:
    async with registry() as adaptations:
        askers = [create(adaptations, "left alone") for _ in range(2)]
        await until_one_is_listed(adaptations)
        for asker in askers:
            asker.cancel()
        await asyncio.wait(askers)
        assert await adaptations.list("local") == []
        encoding.set()
        made = await create(adaptations, "asked for")
        assert await made.wait_until_final() is Status.READY
        assert set(fake.turns) == {"asked"}


async def test_work_goes_on_for_the_others_when_one_client_leaves(
    registry: Open, encoding: threading.Event
) -> None:
    async with registry() as adaptations:
        leaves, stays = (create(adaptations, "a document") for _ in range(2))
        await until_one_is_listed(adaptations)
        await asyncio.sleep(0.01)
        leaves.cancel()
        encoding.set()
        made = await stays
        assert await made.wait_until_final() is Status.READY
        assert await adaptations.list("local") == [made]


async def test_a_refusal_reaches_all_clients_that_joined(
    registry: Open, encoding: threading.Event
) -> None:
    async with registry() as adaptations:
        askers = [create(adaptations, "long " * 199) for _ in range(2)]
        await until_one_is_listed(adaptations)
        encoding.set()
        for refused in await asyncio.gather(*askers, return_exceptions=True):
            assert isinstance(refused, RequestError)
            assert refused.code == "document_too_long"
        assert await adaptations.list("local") == []


async def test_an_adaptation_deleted_while_it_is_stored_does_not_come_back(
    registry: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saving, gate = asyncio.Event(), asyncio.Event()
    save = Storage.save

    async def held(self: Storage, adaptation: Adaptation, document: Any) -> Saved:
        saving.set()
        await gate.wait()
        return await save(self, adaptation, document)

    monkeypatch.setattr(Storage, "save", held)
    async with registry(tmp_path.as_uri()) as adaptations:
        made = await create(adaptations, "a document")
        await saving.wait()
        await adaptations.delete("local", made.id)
        gate.set()
        assert made.task is not None
        await made.task
        assert list(tmp_path.rglob("manifest.json")) == []
