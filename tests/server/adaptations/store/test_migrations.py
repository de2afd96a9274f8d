"""What earlier versions wrote can be used, and is left as it is.

``data/written_by_0.1.0`` was written by a server of version 0.1.0 (commit e397da4) with the tiny
model: one adaptation, of which it answered the query below as stated.
"""

import shutil
import time
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from refine_server.server.adaptations.store.entries import Store
from refine_server.server.adaptations.store.migrations import _nested, migrate
from refine_server.server.app import create_app
from refine_server.server.settings import Settings
from refine_server.ttt.interface.config import AdaptConfig
from support.live_server import wait_until_open

WRITTEN_BY_0_1_0 = Path(__file__).parent / "data" / "written_by_0.1.0"
ID = "adapt-5c11661f013ffc35a821eb93159c1d96"
FINGERPRINT = "894628b1f27056d22b4df3829bad5d3b63517bf4ea3f411bc23eefebdecd6f91"
QUERY, ANSWER = "Where does the ferry go?", " tortoise"

FLAT = {
    "objective": "refine",
    "prefix": "full",
    "ntp_on": None,
    "spans_as": "text",
    "span_tokens": 32,
    "steps": 1,
    "chunks": 2,
    "rollouts": 1,
    "rollout_tokens": 2,
    "rollout_temperature": 1.0,
    "demonstration": False,
    "selection": "entropy",
    "reward": "exact",
    "grpo_coef": 0.4,
    "ntp_coef": 1.0,
    "kl_coef": 0.0,
    "clip_ratio": 0.2,
    "optimizer": "adamw",
    "learning_rate": 0.006,
    "max_grad_norm": 1.0,
    "targets": "low_rank",
    "rank": 1,
    "max_seconds": None,
    "guard": "none",
    "seed": 5,
}
"""The settings of version 0.1.0."""


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Return a copy of the store that 0.1.0 wrote, used just now, as its entry would have expired
    long ago."""
    folder = tmp_path / "store"
    shutil.copytree(WRITTEN_BY_0_1_0, folder)
    Store(folder.as_uri(), FINGERPRINT).touch(ID, time.time())
    return folder


def test_an_adaptation_of_0_1_0_answers_as_it_did_there(store: Path) -> None:
    app = create_app(Settings(model="tiny", store=store.as_uri(), shutdown_seconds=0.3))
    with TestClient(app) as client:
        wait_until_open(app)
        resource = client.get(f"/v1/adaptations/{ID}").json()
        body = {"query": QUERY, "adaptation": ID, "max_tokens": 12}
        answer = client.post("/v1/answers", json=body).json()
    assert (resource["status"], resource["document_tokens"]) == ("ready", 23)
    assert resource["adapt"]["optimizer"]["steps"] == 1
    assert resource["adapt"]["fast_weights"] == {"targets": "low_rank", "rank": 1}
    assert (answer["answer"], answer["answered_by"]) == (ANSWER, "adapted")
    for path in WRITTEN_BY_0_1_0.rglob("*.*"):  # so that 0.1.0 can read it still
        if path.is_file():
            there = store / path.relative_to(WRITTEN_BY_0_1_0)
            assert there.read_bytes() == path.read_bytes()


def test_an_adaptation_of_0_1_0_can_be_deleted(store: Path) -> None:
    entries = Store(store.as_uri(), FINGERPRINT)
    entries.delete(ID)
    assert entries.files.find() == []


def settings_of(**flat: object) -> AdaptConfig:
    return AdaptConfig.model_validate(_nested({**FLAT, **flat}))


def test_flat_settings_keep_their_meaning() -> None:
    assert settings_of() == AdaptConfig.model_validate(
        {
            "on": {"kind": "document"},
            "rollouts": {"positions": 2, "tokens": 2},
            "optimizer": {"steps": 1},
            "fast_weights": {"targets": "low_rank", "rank": 1},
            "guard": "none",
            "seed": 5,
        }
    )
    assert settings_of(steps=0).objective == "none"
    spans = settings_of(prefix="local", selection="surprise", span_tokens=16).on
    assert spans.model_dump() == {
        "kind": "spans",
        "tokens": 16,
        "ntp_on": "spans",
        "choose": "surprise",
    }
    by_query = settings_of(prefix="local", selection="query", spans_as="answer", ntp_on="document")
    assert by_query.on.model_dump() == {
        "kind": "query_spans",
        "tokens": 32,
        "ntp_on": "document",
        "learn_as": "answer",
    }


def test_nested_settings_of_0_2_are_taken_as_they_are() -> None:
    config = AdaptConfig().model_dump(mode="json")
    steps = [{"step": 1, "attention": 0.5}]
    report = {"steps": steps, "guard": None, "held_out": []}
    manifest = {"id": "x", "config": config, "description": {"report": report}}
    migrated = migrate(1, manifest)
    assert migrated == {
        **manifest,
        "description": {"report": {"steps": steps, "kept_base_reason": None, "held_out": []}},
        "data_file": "document.safetensors",
    }


def test_reports_of_0_2_have_the_present_words() -> None:
    report = {"steps": [], "guard": "kept_base", "held_out": [{"step": 0, "reward": 0.5}]}
    shortened = {"document_tokens": 9, "read_tokens": 5}
    description = {"report": report, "overflow": shortened}
    manifest = {"config": AdaptConfig().model_dump(mode="json"), "description": description}
    described = migrate(1, manifest)["description"]
    assert described["report"]["kept_base_reason"] == "no_better_step"
    assert described["report"]["held_out"] == [{"step": 0, "accuracy": 0.5}]
    assert described["overflow"] == {"sent_tokens": 9, "read_tokens": 5}
