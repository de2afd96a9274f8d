"""The library interface: load a model, adapt to a document, ask questions."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import refine_server
from refine_server.model import Model
from refine_server.ttt.interface.config import AdaptConfig
from refine_server.ttt.interface.errors import RequestError
from refine_server.ttt.interface.reports import StepReport

EXAMPLE = Path(__file__).parents[2] / "examples" / "tiny_example.json"


@pytest.fixture(scope="module")
def model() -> Model:
    return refine_server.load("tiny")


@pytest.fixture(scope="module")
def document() -> str:
    return (EXAMPLE.parent / json.loads(EXAMPLE.read_text())["document"]).read_text()


def test_a_document_is_adapted_to_once_and_asked_often(model: Model, document: str) -> None:
    before = model.base.fingerprint()
    reports: list[StepReport] = []
    adapted = model.adapt(document, "What is the harbour code?", on_step=reports.append)
    assert reports == list(adapted.report.steps)
    questions = json.loads(EXAMPLE.read_text())["questions"]
    right = [q for q in questions if q["answers"][0] in adapted.answer(q["query"])]
    assert len(right) >= 6
    assert adapted.answer() == adapted.answer("What is the harbour code?")
    assert "".join(adapted.stream(max_tokens=3)) == adapted.answer(max_tokens=3)
    assert model.base.fingerprint() == before


def test_invalid_settings_are_named(model: Model) -> None:
    adapted = model.adapt("The harbour code is amber.", config=AdaptConfig(objective="none"))
    assert adapted.report.steps == ()
    with pytest.raises(ValueError, match="query"):
        adapted.answer()
    with pytest.raises(ValueError, match="beams"):
        adapted.answer("What is the harbour code?", beams=4)
    with pytest.raises(RequestError, match="document"):
        model.adapt("")
    by_query = AdaptConfig().updated(on={"kind": "query_spans"})
    with pytest.raises(RequestError, match="query_spans requires a query") as refused:
        model.adapt("The harbour code is amber.", config=by_query)
    assert refused.value.param == "adapt.on.kind"
    with pytest.raises(ValueError, match="no-such-model"):
        refine_server.load("no-such-model")


def test_importing_the_package_loads_no_torch() -> None:
    code = "import sys, refine_server; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-P", "-c", code], check=True)
