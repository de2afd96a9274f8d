"""Who builds an application: pastes a text, asks, keeps an adaptation, asks again, streams."""

from dataclasses import dataclass
from importlib import resources

from refine_server.benchmarks.robustness.users.checks import Checks
from refine_server.clients import RefineClient
from refine_server.clients.types import Answer, AnswerDelta, Step


@dataclass(frozen=True, kw_only=True, slots=True)
class Text:
    """A text that people have, and two questions about it."""

    name: str
    """Its file in the folder ``examples``."""
    queries: tuple[str, str]

    def read(self) -> str:
        """Return the text."""
        file = resources.files("refine_server.examples") / f"{self.name}.md"
        return file.read_text(encoding="utf-8")


TEXTS = (
    Text(name="lease", queries=("How much is the rent?", "Where are solvents kept?")),
    Text(name="manual", queries=("What does error E3 mean?", "What is the filter's part number?")),
    Text(name="report", queries=("Who succeeds the chair?", "What was the quarter's surplus?")),
)


def use(client: RefineClient, text: Text, checks: Checks, max_tokens: int = 24) -> None:
    """Do what an application does with one text."""
    document, (first, second) = text.read(), text.queries
    name = text.name
    with checks.step(f"{name}: ask"):
        answer = client.answer(
            first, document=document, adapt={"preset": "fast"}, max_tokens=max_tokens
        )
        _check_answer(answer, document, f"{name}: ask", checks)
        report = answer.adaptation_report
        checks.check(f"{name}: two steps were made", report and len(report.steps) == 2)
    with checks.step(f"{name}: keep"):
        made = client.adapt(document, queries=[first, second], adapt={"preset": "fast"})
        kept = client.wait_for_adaptation(made.id)
        checks.check(f"{name}: the adaptation is ready", kept.status == "ready", kept.status)
        again = client.adapt(document, queries=[first, second], adapt={"preset": "fast"})
        checks.check(f"{name}: the same request is the same adaptation", again.id == made.id)
        asked = [client.answer(second, adaptation=made.id, max_tokens=max_tokens) for _ in range(2)]
        for answer in asked:
            _check_answer(answer, document, f"{name}: ask the adaptation", checks)
            named = (answer.adaptation, answer.adaptation_report)
            checks.check(f"{name}: it names the adaptation", named == (made.id, None), named)
        checks.check(f"{name}: the answer is the same", asked[0].answer == asked[1].answer)
        client.delete_adaptation(made.id)
    with checks.step(f"{name}: stream"):
        events = list(
            client.stream_answer(
                first, document=document, adapt={"preset": "fast"}, max_tokens=max_tokens
            )
        )
        steps = [event.step for event in events if isinstance(event, Step)]
        checks.check(f"{name}: steps are streamed", steps == [1, 2], steps)
        said = "".join(event.text for event in events if isinstance(event, AnswerDelta))
        last = events[-1]
        whole = last.answer if isinstance(last, Answer) else None
        checks.check(f"{name}: the pieces are the answer", said == whole, (said, whole))


def _check_answer(answer: Answer, document: str, where: str, checks: Checks) -> None:
    """Check what every answer has to tell."""
    checks.check(f"{where}: there is an answer", answer.answer.strip(), answer.answer)
    told = (answer.answered_by, answer.kept_base_reason)
    has_reason = answer.kept_base_reason is not None
    checks.check(f"{where}: it says what answered", has_reason == (told[0] == "kept_base"), told)
    checks.check(f"{where}: it was adapted to", told[0] in ("adapted", "kept_base"), told)
    checks.check(f"{where}: there is evidence", answer.citations)
    for citation in answer.citations:
        is_there = document[citation.start : citation.end] == citation.text
        checks.check(f"{where}: evidence stands in the document", is_there, citation.text)
