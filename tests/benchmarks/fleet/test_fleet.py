"""The simulation of a fleet agrees with queueing theory and with the measured run it is fed by."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from refine_server.benchmarks.fleet.replay import Replay, Sample
from refine_server.benchmarks.fleet.simulate import Fleet, Service, simulate
from refine_server.benchmarks.fleet.study import validate
from refine_server.benchmarks.fleet.trace import text_of, zipf_trace
from refine_server.server.cli.main import app

MEASURED = Path(__file__).parents[3] / "benchmarks" / "results" / "fleet-tiny" / "replay.json"
EVEN = Service(hits=[0.01], misses=[0.01], encodings=[0.0], overheads=[0.0])
SKEWED = Service(hits=[0.01], misses=[0.1], encodings=[0.002], overheads=[0.005])


def test_popular_documents_come_as_often_as_zipf_s_law_says() -> None:
    trace = zipf_trace(rate=50.0, requests=20_000, documents=10)
    assert trace.arrivals[-1] == pytest.approx(400, rel=0.05)
    harmonic = sum(1 / rank for rank in range(1, 11))
    for document in (0, 4, 9):
        share = trace.documents.count(document) / 20_000
        assert share == pytest.approx(1 / (document + 1) / harmonic, rel=0.1)


def test_documents_differ_and_are_as_long_as_asked() -> None:
    assert text_of(1, 100) != text_of(2, 100)
    assert 100 <= len(text_of(1, 100).split()) < 110


def test_one_replica_waits_as_an_m_d_1_queue_does() -> None:
    """Mean wait of Poisson arrivals and one duration d at utilization u: u d / (2 (1 - u))."""
    trace = zipf_trace(rate=60.0, requests=30_000, documents=100)
    fleet = Fleet(replicas=1, affinity=True, cached_documents=100, max_queue=10**6)
    outcome = simulate(trace, EVEN, fleet)
    assert outcome.utilization == pytest.approx(0.6, rel=0.03)
    mean = sum(outcome.latencies) / len(outcome.latencies)
    assert mean == pytest.approx(0.01 + 0.6 * 0.01 / (2 * 0.4), rel=0.05)


def test_with_affinity_a_document_is_read_once() -> None:
    trace = zipf_trace(rate=10.0, requests=2000, documents=50)
    different = len(set(trace.documents))
    fleet = Fleet(replicas=4, affinity=True, cached_documents=50)
    outcome = simulate(trace, SKEWED, fleet)
    assert len(outcome.latencies) - outcome.hits == different == outcome.kept_documents
    anywhere = Fleet(replicas=4, affinity=False, cached_documents=50)
    other = simulate(trace, SKEWED, anywhere)
    assert other.hit_ratio < outcome.hit_ratio
    assert other.kept_documents > 3 * outcome.kept_documents


def test_the_least_recently_used_document_leaves() -> None:
    trace = zipf_trace(rate=1.0, requests=2000, documents=100, exponent=0.0)
    fleet = Fleet(replicas=1, affinity=True, cached_documents=25)
    assert simulate(trace, SKEWED, fleet).hit_ratio == pytest.approx(0.25, abs=0.04)


def test_a_full_replica_s_requests_go_to_the_next_and_are_then_refused() -> None:
    trace = zipf_trace(rate=150.0, requests=3000, documents=1)
    options = {"replicas": 4, "affinity": True, "cached_documents": 1, "max_queue": 8}
    alone = simulate(trace, EVEN, Fleet(**options, fallbacks=0))
    assert alone.rejected / 3000 == pytest.approx(1 / 3, abs=0.05)
    assert simulate(trace, EVEN, Fleet(**options, fallbacks=1)).rejected == 0


def run_of(trace_seed: int = 0) -> Replay:
    """Return a run as it would have been measured if replicas were what is simulated."""
    trace = zipf_trace(rate=20.0, requests=800, documents=30, seed=trace_seed)
    outcome = simulate(trace, SKEWED, Fleet(replicas=2, affinity=True, cached_documents=100))
    seen: set[int] = set()
    samples = []
    for document, latency in zip(trace.documents, outcome.latencies, strict=True):
        service = 0.01 if document in seen else 0.1
        samples.append(
            Sample(
                document=document,
                replica=str(document % 2),
                is_hit=document in seen,
                latency=latency,
                queued=max(latency - service - 0.005, 0.0),
                service=service,
            )
        )
        seen.add(document)
    return Replay(
        rate=20.0,
        words=1,
        max_tokens=1,
        arrivals=trace.arrivals,
        documents=trace.documents,
        samples=samples,
    )


def test_a_run_is_compared_with_its_simulation() -> None:
    compared = validate(run_of(), cached_documents=100, own=True)
    assert set(compared) == {"p50", "p95", "p99", "mean", "hit_ratio"}
    assert abs(compared["hit_ratio"]["difference"]) < 0.01
    assert abs(compared["p50"]["difference"]) < 0.15


def test_the_figures_of_the_documentation_come_within_15_percent() -> None:
    """The measured run of two replicas behind Ray Serve that docs/scaling.md shows."""
    compared = validate(Replay.model_validate_json(MEASURED.read_text()), 100, own=True)
    close = {name: abs(of["difference"]) < 0.15 for name, of in compared.items() if name != "p99"}
    assert close == dict.fromkeys(("p50", "p95", "mean", "hit_ratio"), True)


def test_the_command_finds_the_smallest_fleet(tmp_path: Path) -> None:
    (tmp_path / "replay.json").write_text(run_of().model_dump_json())
    options = ["--rates", "20,200", "--documents", "200", "--requests", "1500", "--json"]
    files = ["--replay", str(tmp_path / "replay.json"), "--plot", str(tmp_path / "plot.png")]
    shown = CliRunner().invoke(app, ["bench", "fleet", *files, *options])
    assert shown.exit_code == 0, shown.output
    rows = json.loads(shown.output.splitlines()[-1])["rows"]
    assert [(row["rate"], row["affinity"]) for row in rows] == [
        *((20.0, True), (20.0, False), (200.0, True), (200.0, False)),
    ]
    assert all(row["p99"] <= 2.0 for row in rows)
    assert rows[2]["replicas"] > rows[0]["replicas"]
    assert rows[2]["hit_ratio"] > rows[3]["hit_ratio"]
    assert (tmp_path / "plot.png").stat().st_size > 10_000
