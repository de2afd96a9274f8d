"""Two real replicas behind Ray Serve.

They run in the environment of ``make ray``, and nowhere else.
"""

import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

if Path(sys.prefix).name != ".venv-ray":
    pytest.skip("runs in the environment of `make ray`", allow_module_level=True)

import ray
import yaml
from ray.serve.context import _get_global_client
from ray.serve.schema import ServeDeploySchema

from refine_server.clients import RefineClient

CONFIG = Path(__file__).parents[2] / "deploy" / "ray.yaml"
REPLICA = "ray::ServeReplica:refine-server:Replica"
QUESTION = "What is the castle animal?"
ADAPT = {"optimizer": {"steps": 2}}
LONG_ADAPT = {"optimizer": {"steps": 32}}
MINUTES = 300.0
"""Longest wait for a replica to start or to end, on a machine that does much else."""
ERRORS = {"replica_lost", "queue_full", "shutting_down"}


def document(n: int) -> str:
    words = random.Random(n).sample(["amber", "falcon", "saffron", "cedar", "copper", "opal"], 3)
    return f"Report {n}. The castle animal is {words[0]}. The harbour code is {words[1]}. " * 4


def replicas() -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if "".join(process.info["cmdline"] or ()).startswith(REPLICA):
            found.append(process)
    return found


def wait_for(condition: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.2)


def ask(http: httpx.Client, **body: object) -> httpx.Response:
    return http.post("/v1/answers", json={"query": QUESTION, "max_tokens": 8, **body})


def answer_of(response: httpx.Response) -> dict[str, Any]:
    """Return the part of an answer that is the same whoever gives it."""
    assert response.status_code == 200, response.text
    answer = response.json()
    losses = [step["loss"] for step in (answer["adaptation_report"] or {}).get("steps", ())]
    return {"answer": answer["answer"], "by": answer["answered_by"], "losses": losses}


def ready(http: httpx.Client, n: int) -> str:
    """Adapt to a document; return the id of the adaptation when it is ready."""
    made = http.post("/v1/adaptations", json={"document": document(n), "adapt": ADAPT})
    assert made.status_code in (200, 202), made.text
    events = http.get(f"/v1/adaptations/{made.json()['id']}/events")
    assert "adaptation.ready" in events.text
    return str(made.json()["id"])


def test_answers_are_those_of_one_process(http: httpx.Client, one_process: str) -> None:
    with httpx.Client(base_url=one_process, timeout=60.0) as alone:
        for n in range(6):
            body = {"document": document(n), "adapt": ADAPT}
            assert answer_of(ask(http, **body)) == answer_of(ask(alone, **body))


def test_requests_about_a_document_reach_the_replica_that_has_it(http: httpx.Client) -> None:
    """A Zipf replay: 60 documents, 250 requests of clients that know nothing of sessions."""
    weights = [1 / rank for rank in range(1, 61)]
    asked = random.Random(0).choices(range(60), weights, k=250)
    place: dict[int, str] = {}
    hits = repeated = 0
    for n in asked:
        replica = ask(http, document=document(n)).headers["x-replica"]
        repeated += n in place
        hits += place.get(n) == replica
        place[n] = replica
    shares = Counter(place.values())
    print(f"affinity: {hits} of {repeated}; documents by replica: {shares}")
    assert hits / repeated >= 0.95
    assert len(shares) == 2
    assert min(shares.values()) > 10


def test_an_adaptation_is_asked_where_it_was_made(http: httpx.Client, url: str) -> None:
    with RefineClient(url) as client:
        made = [client.wait_for_adaptation(client.adapt(document(n)).id) for n in range(100, 106)]
        assert {client.adapt(document(100)).id for _ in range(3)} == {made[0].id}
    places = set()
    for n, adaptation in enumerate(made, 100):
        of_document = ask(http, document=document(n)).headers["x-replica"]
        assert ask(http, adaptation=adaptation.id).headers["x-replica"] == of_document
        shown = http.get(f"/v1/adaptations/{adaptation.id}")
        assert shown.headers["x-replica"] == of_document
        places.add(of_document)
    assert len(places) == 2


def test_a_client_that_leaves_ends_the_work(http: httpx.Client, url: str) -> None:
    with RefineClient(url) as client:
        events = client.stream_answer(QUESTION, document=document(7), adapt=LONG_ADAPT)
        next(events)
        events.close()
    began = time.monotonic()
    assert ask(http, document=document(7)).status_code == 200
    assert time.monotonic() - began < 20


@contextmanager
def load(http: httpx.Client, clients: int, **body: Any) -> Iterator[list[httpx.Response]]:
    """Keep so many clients asking, each about documents of its own; collect the responses."""
    responses: list[httpx.Response] = []
    ended = threading.Event()

    def run(client: int) -> None:
        n = 1000 * (client + 1)
        while not ended.is_set():
            n += 1
            responses.append(ask(http, document=document(n), **body))

    with ThreadPoolExecutor(clients) as pool:
        running = [pool.submit(run, client) for client in range(clients)]
        try:
            yield responses
        finally:
            ended.set()
    for client in running:
        client.result()  # raises what a request that got no response raised


def codes(responses: list[httpx.Response]) -> Counter[str]:
    return Counter(
        "ok" if response.is_success else response.json()["error"]["code"] for response in responses
    )


def test_a_killed_replica_takes_no_ready_adaptation_along(http: httpx.Client) -> None:
    made = {n: ready(http, n) for n in range(200, 208)}
    before = {n: answer_of(ask(http, adaptation=id)) for n, id in made.items()}
    victim = replicas()[0]
    with load(http, 6, adapt=ADAPT) as responses:
        wait_for(lambda: len(responses) > 12, 60)
        victim.kill()
        lost = time.monotonic()
        assert {n: answer_of(ask(http, adaptation=id)) for n, id in made.items()} == before
        print(f"all ready adaptations answered {time.monotonic() - lost:.1f} s after the kill")
        wait_for(lambda: len(replicas()) == 2, MINUTES)
        print(f"two replicas again after {time.monotonic() - lost:.1f} s")
    found = codes(responses)
    print(f"under load: {found}")
    assert set(found) - {"ok"} <= ERRORS
    assert found["ok"] > 12
    assert {n: answer_of(ask(http, adaptation=id)) for n, id in made.items()} == before


def test_an_update_loses_no_request_and_the_queue_sets_the_number_of_replicas(
    http: httpx.Client, url: str, store: str
) -> None:
    config = yaml.safe_load(CONFIG.read_text())
    (application,) = config["applications"]
    application["args"] = {"model": "tiny", "store": store, "max_queue": 200, "max_active": 1}
    ingress, replica = application["deployments"]
    ingress["num_replicas"] = 1
    replica["ray_actor_options"] = {"num_cpus": 0.5}
    replica["autoscaling_config"] |= {
        "max_replicas": 2,
        "look_back_period_s": 2,
        "upscale_delay_s": 1,
        "downscale_delay_s": 2,
    }
    known = ready(http, 300)
    before = {process.pid for process in replicas()}
    ray.init(address="auto", namespace="serve", log_to_driver=False)
    try:
        with load(http, 1) as light:
            _get_global_client().deploy_apps(ServeDeploySchema.model_validate(config))
            wait_for(lambda: len(replicas()) == 1 and replicas()[0].pid not in before, MINUTES)
        assert set(codes(light)) == {"ok"}
        print(f"{len(light)} requests during the update")
    finally:
        ray.shutdown()
    assert ask(http, adaptation=known).status_code == 200
    with load(http, 16, adapt=LONG_ADAPT) as heavy:
        wait_for(lambda: len(replicas()) == 2, MINUTES)
    assert set(codes(heavy)) <= {"ok", *ERRORS}
    wait_for(lambda: len(replicas()) == 1, MINUTES)
    assert ask(http, adaptation=known).status_code == 200
