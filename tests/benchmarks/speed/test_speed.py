"""The speed benches compare sides that compute the same."""

import shutil
from pathlib import Path

import pytest
import torch

from refine_server.benchmarks.common.rows import DataError
from refine_server.benchmarks.common.timing import medians
from refine_server.benchmarks.speed.ask import AskBench
from refine_server.benchmarks.speed.decode import DecodeBench
from refine_server.benchmarks.speed.evidence_step import EvidenceStepBench
from refine_server.benchmarks.speed.memory import measure
from refine_server.benchmarks.speed.prefill import PrefillBench, row_by_row_chunks
from refine_server.benchmarks.speed.refine_step import StepBench, small_lact
from refine_server.kernels import dispatch

EXAMPLES = Path(__file__).parents[3] / "examples"


def test_row_by_row_chunks_are_the_delta_rule() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, 96, 8, generator=generator).double() for _ in "qkv")
    k = torch.nn.functional.normalize(k, dim=-1)
    beta = torch.rand(2, 3, 96, generator=generator).double()
    expected, _ = dispatch.delta_rule(q, k, v, beta)
    torch.testing.assert_close(row_by_row_chunks(q, k, v, beta), expected)


def test_sides_run_in_turn_and_the_first_round_is_not_counted() -> None:
    calls: list[str] = []
    seconds = medians({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 2)
    assert calls == ["a", "b"] * 3
    assert set(seconds) == {"a", "b"}


def test_all_sides_write_the_same_answers(tmp_path: Path) -> None:
    for name in ("tiny_example.json", "tiny_example.md"):
        shutil.copy(EXAMPLES / name, tmp_path)
    result = DecodeBench("tiny", tmp_path, questions=2, tokens=6).run(repeats=1)
    assert result["tokens_equal"]
    assert result["answers"] == 2
    assert result["accepted_tokens"] <= result["drafted_tokens"]
    assert 1 <= result["tokens_per_step"] <= 6
    assert result["speedup_vs_transformers"] == pytest.approx(
        result["ours_tokens_per_second"] / result["transformers_tokens_per_second"]
    )


def test_a_folder_without_examples_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"{tmp_path} has no examples for tiny"):
        DecodeBench("tiny", tmp_path, questions=1, tokens=1)


def test_both_sides_read_a_prompt() -> None:
    result = PrefillBench("tiny").run(tokens=9, repeats=1)
    assert result["speedup_vs_transformers"] == pytest.approx(
        result["ours_tokens_per_second"] / result["transformers_tokens_per_second"]
    )


def test_a_step_in_segments_peaks_no_lower_than_before_it() -> None:
    figures = measure("tiny", 200, 1)
    assert 0 < figures["before"] <= figures["peak"]


def test_ask_compares_documents_of_the_lengths_asked_for() -> None:
    result = AskBench("tiny", tokens=2).run(64, 128, document_tokens=64, queries=1, repeats=1)
    # Whole sentences, whose last white space belongs to the document's tail.
    assert 47 <= result["shortest"] <= 64 < result["longest"] <= 128
    assert result["speedup_ask_many"] > 0


def test_the_random_lact_says_something_finite() -> None:
    output = small_lact()(torch.arange(300)[None])
    assert output.logits.isfinite().all()


def test_both_ways_through_a_step_have_one_gradient() -> None:
    bench = StepBench("tiny", 96, positions=2, rollouts=1, rollout_tokens=3)
    result = bench.run(repeats=2, naive_repeats=1)
    assert result["gradient_relative_error"] <= 1e-5
    assert (result["repeats"], result["naive_repeats"]) == (2, 1)
    assert result["speedup_vs_naive"] == pytest.approx(
        result["naive_seconds"] / result["ours_seconds"]
    )


def test_steps_on_evidence_and_on_the_document_are_measured_at_every_length() -> None:
    result = EvidenceStepBench("tiny", spans=2, span_tokens=16).run([64, 130], repeats=1)
    short, long = result["lengths"]
    assert (short["document_tokens"], long["document_tokens"]) == (64, 130)
    assert result["ratio_longest_to_shortest"] == pytest.approx(
        long["cpu_seconds"] / short["cpu_seconds"]
    )
    assert long["speedup"] == pytest.approx(long["document_cpu_seconds"] / long["cpu_seconds"])
    assert long["step_bytes"] >= 0
