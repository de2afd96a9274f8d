"""No order of creating, asking, deleting, evicting, expiring and restarting loses an adaptation."""

import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    rule,
    run_state_machine_as_test,
)
from starlette.testclient import TestClient

WORDS = ("alpha", "beta", "gamma", "delta")
TWO_DOCUMENTS = 9000


@pytest.fixture
def machine(make_app: Any, all_spare: None) -> type[RuleBasedStateMachine]:
    """Return the state machine's class, bound to the scripted model's apps."""

    class AdaptationLife(RuleBasedStateMachine):
        """Knows what each adaptation must answer, whether it is in memory, stored or restarted."""

        ids = Bundle("ids")

        def __init__(self) -> None:
            super().__init__()
            self.folder = tempfile.TemporaryDirectory()
            self.expected: dict[str, str] = {}
            self.stack = ExitStack()
            self.start()

        def start(self) -> None:
            app = make_app(store=Path(self.folder.name).as_uri(), memory_bytes=4 * TWO_DOCUMENTS)
            self.client = self.stack.enter_context(TestClient(app))
            app.state.engine.opened.result(10)
            while self.client.get("/health/ready").status_code == 503:
                pass

        @rule(target=ids, word=st.sampled_from(WORDS), seed=st.integers(0, 2))
        def create(self, word: str, seed: int) -> str:
            body = {"document": f"{word} text", "adapt": {"optimizer": {"steps": 1}, "seed": seed}}
            made = self.client.post("/v1/adaptations", json=body)
            assert made.status_code in (200, 202)
            adaptation_id: str = made.json()["id"]
            assert self.expected.setdefault(adaptation_id, word) == word
            return adaptation_id

        @rule(adaptation_id=ids)
        def ask(self, adaptation_id: str) -> None:
            body = {"query": "who?", "adaptation": adaptation_id}
            reply = self.client.post("/v1/answers", json=body)
            if adaptation_id in self.expected:
                assert reply.json()["answer"] == self.expected[adaptation_id]
            else:
                assert reply.status_code == 404

        @rule(adaptation_id=ids)
        def follow(self, adaptation_id: str) -> None:
            reply = self.client.get(f"/v1/adaptations/{adaptation_id}/events")
            if adaptation_id in self.expected:
                assert reply.text.count("event: adaptation.step") == 1
                assert "event: adaptation.ready" in reply.text
            else:
                assert reply.status_code == 404

        @rule(adaptation_id=consumes(ids))
        def delete(self, adaptation_id: str) -> None:
            reply = self.client.delete(f"/v1/adaptations/{adaptation_id}")
            known = self.expected.pop(adaptation_id, None)
            assert reply.status_code == (404 if known is None else 200)

        @rule(bad=st.sampled_from([{}, {"document": ""}, {"document": "w " * 400}, {"x": 1}]))
        def create_badly(self, bad: dict[str, Any]) -> None:
            assert self.client.post("/v1/adaptations", json=bad).status_code in (413, 422)

        @rule()
        def restart(self) -> None:
            self.wait()
            self.stack.close()
            self.stack = ExitStack()
            self.start()

        @rule()
        def wait(self) -> None:
            """Wait until all running adaptations are ready."""
            for adaptation_id in self.expected:
                self.client.get(f"/v1/adaptations/{adaptation_id}/events")

        @invariant()
        def lists_what_there_is(self) -> None:
            listed = self.client.get("/v1/adaptations").json()["data"]
            assert {r["id"] for r in listed} == set(self.expected)
            in_memory = sum(r["bytes"] for r in listed if r["in_memory"] and r["status"] == "ready")
            assert in_memory <= TWO_DOCUMENTS

        def teardown(self) -> None:
            self.stack.close()
            self.folder.cleanup()

    return AdaptationLife


def test_no_order_of_events_loses_an_adaptation(machine: type[RuleBasedStateMachine]) -> None:

    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=20,
            stateful_step_count=20,
            deadline=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
