"""``refine-server models`` on directories as fla and transformers write them."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from refine_server.ttt.footprint.figures import measure
from refine_server.ttt.models import bundled, load
from support.command_line import run, run_failing
from support.small_models import tiny_transformers

DATA = Path(__file__).parents[3] / "data"


def models(*arguments: str | Path) -> str:
    shown = run("models", *arguments)
    assert shown.exit_code == 0, shown.output
    return shown.output


def fla_directory(name: str, target: Path, **changes: int) -> Path:
    """Write a directory as fla's save_pretrained does, with the tiny model's tokenizer."""
    from safetensors import safe_open

    target.mkdir()
    with safe_open(DATA / f"{name}.safetensors", "pt") as file:
        names = [n for n in file.keys() if n.startswith("weights.")]  # noqa: SIM118
        weights = {n.removeprefix("weights."): file.get_tensor(n) for n in names}
        config = json.loads(file.metadata()["config"]) | changes
    (target / "config.json").write_text(json.dumps(config))
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    add_tokenizer(target)
    return target


def add_tokenizer(target: Path) -> None:
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(bundled.tiny() / file, target / file)


def hybrid_directory(target: Path) -> Path:
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "qwen3_next",
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=96,
        head_dim=16,
        linear_key_head_dim=8,
        linear_value_head_dim=16,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=32,
        shared_expert_intermediate_size=32,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(target)
    add_tokenizer(target)
    return target


def test_list_names_every_family() -> None:
    shown = models("list")
    for word in ("smollm2", "delta_net", "gated_deltanet", "lact_swiglu", "qwen3_next", "overlay"):
        assert word in shown
    families = json.loads(models("list", "--json"))["families"]
    assert families["lact"] == ["lact_swiglu"]
    assert families["hybrid"] == [
        "kimi_linear", "olmo_hybrid", "qwen3_5", "qwen3_5_text", "qwen3_next"
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["delta_net", "gated_delta_net", "lact_760m_style", "qwen3_next"])
@pytest.mark.parametrize("targets", ["fast_weights", "all"])
def test_inspect_equals_a_loaded_model(tmp_path: Path, name: str, targets: str) -> None:
    path = tmp_path / name
    if name == "qwen3_next":
        hybrid_directory(path)
    else:  # LaCT's chunks as long as real ones are to a document, or there are hundreds of them
        fla_directory(name, path, lact_chunk_size=1024, window_size=1024)
    shown = json.loads(models("inspect", path, "--json", "--targets", targets, "--memory", "1GiB"))
    model = load(path)
    assert shown["family"] == model.family
    assert shown["parameters"] == model.num_parameters
    assert shown["weight_bytes"] == sum(p.nbytes for p in model.parameters())
    assert shown["fast_weight_bytes"] == model.new_fast_weights(targets, 8, 0).nbytes
    with torch.no_grad():
        state = model(torch.zeros(1, 1024, dtype=torch.int64)).state
    assert shown["state_bytes"]["1024"] == state.nbytes
    assert shown["longest_document"] > 0
    assert shown["context_length"] == model.context_length


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("smollm2", "8,192 tokens, answer included"),
        ("tiny", "any length"),
        ("lact", "512 tokens, answer included"),
        ("windows", "any length"),
    ],
)
def test_inspect_tells_the_length_that_a_model_was_trained_for(
    tmp_path: Path, name: str, told: str
) -> None:
    if name == "lact":
        fla_directory("lact_760m_style", tmp_path / name, lact_chunk_size=1024, window_size=1024)
    elif name == "windows":
        settings = {"vocab_size": 96, "sliding_window": 16, "max_position_embeddings": 64}
        tiny_transformers("mistral", **settings).save_pretrained(tmp_path / name)
    path = tmp_path / name if name in ("lact", "windows") else name
    [line] = [line for line in models("inspect", path).splitlines() if line.startswith("context")]
    assert told in line


def test_inspect_reads_no_weights(tmp_path: Path) -> None:
    path = fla_directory("delta_net", tmp_path / "model")
    (path / "model.safetensors").unlink()
    assert "delta_net" in models("inspect", path)


def test_the_longest_document_is_as_long_as_the_memory_allows() -> None:
    small, large = (measure("tiny", memory_bytes=m * 2**30) for m in (1, 2))
    assert 1000 < small.longest_document < large.longest_document
    assert small.peak_bytes[1024] < small.peak_bytes[4096] < 2**30
    none = measure("tiny", memory_bytes=small.weight_bytes)
    assert none.longest_document == 0


@pytest.mark.parametrize("name", ["gated_delta_net", "qwen3_next"])
def test_a_converted_model_loads(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    hybrid_directory(path) if name == "qwen3_next" else fla_directory(name, path)
    models("convert", path, tmp_path / "half", "--dtype", "bfloat16")
    model, half = load(path), load(tmp_path / "half")
    assert half.dtype == torch.bfloat16
    assert measure(str(tmp_path / "half")).dtype == "bfloat16"
    ids = torch.arange(40)[None]
    difference = (model(ids).logits - half(ids).logits).abs().mean()
    assert difference <= 0.05 * model(ids).logits.abs().max()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("inspect", "no/where/at/all"), "not a directory"),
        (("inspect", "tiny", "--memory", "much"), "KiB"),
        (("convert", "tiny", "."), "exists"),
        (("convert", "missing.gguf", "somewhere"), "missing.gguf"),
    ],
)
def test_bad_input_is_a_one_line_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    run_failing(2, message, "models", *arguments)
    assert not list(tmp_path.iterdir())
