"""Report of a replay: scores, paired comparisons, cost, and figures of the adaptations."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from statistics import median
from typing import Any

from refine_server.benchmarks.quality.longbench.data import BUCKETS, bucket
from refine_server.benchmarks.quality.replay.questions import Result
from refine_server.benchmarks.report import plots, stats
from refine_server.benchmarks.report.manifest import Manifest
from refine_server.benchmarks.report.render import Plot, Report, Section, facts_of
from refine_server.benchmarks.report.stats import Interval

TITLES = {"longbench": "LongBench", "ruler": "RULER"}
AVERAGE = "average"
BASELINE = "none"
PHASES = {
    "answer, as the client waits": None,
    "queue": "queue_seconds",
    "prefill": "prefill_seconds",
    "adaptation": "adapt_seconds",
    "first token": "time_to_first_token_seconds",
    "decoding": "decode_seconds",
}
CURVES = {"ntp_loss": "next-token loss (nats)", "reward_mean": "mean reward of rollouts"}
"""Figures drawn for each step: those that can be compared between objectives."""


class Results:
    """A run's answers to the questions that every objective answered.

    Args:
        results: the stored results.
        objectives: objectives in the order of the report.
        lengths: context length in words of each question, for LongBench-E's buckets; may be empty.
    """

    def __init__(
        self,
        results: Sequence[Result],
        objectives: Sequence[str],
        lengths: Mapping[tuple[str, str], int],
    ) -> None:
        by_question = defaultdict[tuple[str, str], dict[str, Result]](dict)
        for result in results:
            by_question[result.task, result.id][result.objective] = result
        self.whole = {q: r for q, r in by_question.items() if r.keys() >= set(objectives)}
        self.partial = len(by_question) - len(self.whole)
        self.objectives = list(objectives)
        self.tasks = sorted({task for task, _ in self.whole})
        self.lengths = lengths

    def of(self, objective: str, task: str | None = None) -> list[Result]:
        """Return one objective's results; the questions have the same order for all objectives."""
        return [r[objective] for q, r in sorted(self.whole.items()) if task in (None, q[0])]

    def scores(self, objective: str, task: str | None = None) -> list[float]:
        """Return the scores of ``of``'s results."""
        return [result.score for result in self.of(objective, task)]

    def average(self, objective: str) -> Interval:
        """Return the mean over tasks of their mean scores, as in LongBench's and RULER's tables."""
        return stats.stratified({task: self.scores(objective, task) for task in self.tasks})


def replay_report(
    manifest: Manifest, results: Results, errors: int, first: str | None, ended: str
) -> Report:
    """Make the report of a replay; it has ids and scores, but no text of the data set.

    Args:
        manifest: describes the run.
        results: the answers.
        errors: number of requests that failed.
        first: which one failed first, and why.
        ended: time of the last answer.
    """
    title = f"{TITLES[manifest.kind]}: {manifest.model['id']}"
    facts = _facts(manifest, results, errors, first, ended)
    data: dict[str, Any] = {"manifest": asdict(manifest), "ended": ended, "errors": errors}
    data["first_error"] = first
    if not results.whole:
        text = "No question was answered under every objective."
        return Report(title, facts, [Section("Scores", text)], {**data, "rows": []})
    parts = [_scores(results), _buckets(results), _pairs(results), _cost(results)]
    parts += [_latency(results), _adaptation(results)]
    for _, found in parts:
        data |= found
    data["rows"] = [
        {"task": r.task, "id": r.id, "objective": r.objective, "score": round(r.score, 2),
         "seconds": round(r.seconds, 3), "adapted": r.adapted}
        for objective in results.objectives
        for r in results.of(objective)
    ]  # fmt: skip
    return Report(title, facts, [section for section, _ in parts if section.rows], data)


Part = tuple[Section, dict[str, Any]]


def _facts(
    manifest: Manifest, results: Results, errors: int, first: str | None, ended: str
) -> dict[str, str]:
    facts = facts_of(manifest) | {"last answer": ended, "questions": str(len(results.whole))}
    if results.partial:
        facts["left out"] = f"{results.partial} questions that not every objective answered"
    if errors:
        facts["errors"] = f"{errors} requests brought no answer; the first: {first}"
    return facts


def _scores(results: Results) -> Part:
    found = {
        objective: {
            **{task: stats.interval(results.scores(objective, task)) for task in results.tasks},
            AVERAGE: results.average(objective),
        }
        for objective in results.objectives
    }
    labels = [*results.tasks, AVERAGE]
    rows = [
        [task, str(found[results.objectives[0]][task].n)]
        + [str(found[objective][task]) for objective in results.objectives]
        for task in labels
    ]
    series = {objective: [of[task] for task in labels] for objective, of in found.items()}
    draw = partial(plots.bars, labels=labels, series=series, y_label="score")
    title = "Mean score of a task over its questions; average over tasks"
    caption = "Mean score of each task and objective, with 95 % intervals."
    section = Section(
        "Scores",
        "Mean scores, 0 to 100, over a task's questions, with 95 % bootstrap intervals. The "
        "average is over tasks. Of one question, or of equal scores, there is no interval.",
        ["task", "n", *results.objectives],
        rows,
        [Plot("scores", title, caption, draw)],
    )
    data = {o: {task: asdict(i) for task, i in of.items()} for o, of in found.items()}
    return section, {"scores": data}


def _buckets(results: Results) -> Part:
    """Make LongBench-E's table, for questions whose length is known."""
    of = {
        (objective, name): [
            r.score for r in results.of(objective)
            if (r.task, r.id) in results.lengths and bucket(results.lengths[r.task, r.id]) == name
        ]
        for objective in results.objectives
        for name in BUCKETS
    }  # fmt: skip
    there = [name for name in BUCKETS if of[results.objectives[0], name]]
    found = {o: {b: stats.interval(of[o, b]) for b in there} for o in results.objectives}
    rows = [
        [name, str(found[results.objectives[0]][name].n)]
        + [str(found[objective][name]) for objective in results.objectives]
        for name in there
    ]
    text = "Mean over questions by the words in their context (Chinese: characters)."
    section = Section("Scores by length", text, ["length", "n", *results.objectives], rows)
    return section, {"buckets": {o: {b: asdict(i) for b, i in f.items()} for o, f in found.items()}}


def _pairs(results: Results) -> Part:
    pairs = [
        (ours, theirs)
        for place, ours in enumerate(results.objectives)
        for theirs in results.objectives[:place]
    ]
    rows, data = [], []
    for ours, theirs in pairs:
        for task in [*results.tasks, None] if len(results.tasks) > 1 else results.tasks:
            of = stats.paired(results.scores(ours, task), results.scores(theirs, task))
            data.append({"objective": ours, "against": theirs, "task": task, **asdict(of)})
            rows.append(
                [f"{ours} against {theirs}", task or "all questions"]
                + [str(n) for n in (of.wins, of.ties, of.losses)]
                + [of.difference.text("+.1f")]
            )
    text = (
        "The same questions under two objectives: how often which scores higher, and the mean "
        "difference over questions with its 95 % bootstrap interval."
    )
    header = ["pair", "task", "wins", "ties", "losses", "difference"]
    return Section("Question by question", text, header, rows), {"paired": data}


def _cost(results: Results) -> Part:
    series = {
        objective: (median(r.seconds for r in results.of(objective)), results.average(objective))
        for objective in results.objectives
    }
    front = plots.pareto(series)
    rows = [
        [name, f"{seconds:.2f}", str(score), "yes" if name in front else "no"]
        for name, (seconds, score) in series.items()
    ]
    title = "Score (average over tasks) against seconds (median over questions)"
    caption = "Average score against the median seconds of an answer."
    section = Section(
        "Score against seconds",
        "Median seconds that a client waits for an answer. On the front: nothing else is both "
        "faster and better.",
        ["objective", "seconds", "average score", "on the front"],
        rows,
        [Plot("pareto", title, caption, partial(plots.points, series=series))],
    )
    data = {
        name: {"seconds": seconds, "score": score.mean, "front": name in front}
        for name, (seconds, score) in series.items()
    }
    return section, {"pareto": data}


def _latency(results: Results) -> Part:
    found = {
        objective: {
            phase: stats.percentiles(
                [r.seconds if name is None else r.timings[name] for r in results.of(objective)]
            )
            for phase, name in PHASES.items()
        }
        for objective in results.objectives
    }
    first = next(iter(next(iter(found.values())).values()))
    rows = [
        [phase, objective, *(f"{value:.2f}" for value in found[objective][phase].values())]
        for phase in PHASES
        for objective in results.objectives
    ]
    seconds = {o: [r.seconds for r in results.of(o)] for o in results.objectives}
    series = {o: (of, len(of)) for o, of in seconds.items()}
    draw = partial(plots.distribution, series=series, x_label="seconds for an answer")
    caption = "Share of the questions that were answered within so many seconds."
    section = Section(
        "Latency",
        "Seconds. The client timed the whole answer, the server the phases. The time to the first "
        "token counts from the end of queueing.",
        ["phase", "objective", *first],
        rows,
        [Plot("latency", "Time to the whole answer", caption, draw)],
    )
    return section, {"latency": found}


def _adaptation(results: Results) -> Part:
    adapting = [o for o in results.objectives if any(r.steps for r in results.of(o))]
    panels = {
        title: {o: of for o in adapting if (of := _curves(results.of(o), name))}
        for name, title in CURVES.items()
    }
    panels = {title: series for title, series in panels.items() if series}
    rows, data = [], {}
    for objective in adapting:
        answers = results.of(objective)
        guards = sorted({r.guard for r in answers if r.guard})
        used, steps = sum(r.adapted for r in answers), [len(r.steps) for r in answers]
        rollout = sum(r.usage["rollout_tokens"] for r in answers) / len(answers)
        kept_base = ", ".join(f"{g} {sum(r.guard == g for r in answers)}" for g in guards) or "-"
        made = f"{min(steps)} to {max(steps)}, median {median(steps):g}"
        rows.append([objective, f"{used} of {len(answers)}", kept_base, made, f"{rollout:.0f}"])
        data[objective] = {
            "adapted": used,
            "of": len(answers),
            "guards": {g: sum(r.guard == g for r in answers) for g in guards},
            "steps": steps,
            "curves": {
                n: [median(v) for v in plots.carried_forward(_curves(answers, n))] for n in CURVES
            },
        }
    caption = (
        "Median over questions by step; a question that made fewer steps keeps its last value. "
        "Shaded, the middle half of the questions."
    )
    title = "Steps of the adaptations: median over questions"
    section = Section(
        "Adaptations",
        "How many answers come from adapted weights, why the others do not, and how many steps "
        "were made for a question.",
        ["objective", "adapted", "guards", "steps", "rollout tokens an answer"],
        rows,
        [Plot("curves", title, caption, partial(plots.curves, panels=panels))] if panels else [],
    )
    return section, {"adaptations": data}


def _curves(results: Sequence[Result], name: str) -> list[list[float]]:
    """Return the values by step of each question that made steps and whose values are known."""
    if name == "reward_mean":  # it is 0 where there were no rollouts
        results = [r for r in results if r.usage["rollout_tokens"]]
    curves = [[step[name] for step in r.steps] for r in results if r.steps]
    return [curve for curve in curves if None not in curve]
