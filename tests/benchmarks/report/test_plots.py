"""Plots show what was measured: sample sizes, no intervals of nothing, and all questions."""

from collections.abc import Sequence

import pytest
from matplotlib.figure import Figure

from refine_server.benchmarks.report import plots
from refine_server.benchmarks.report.render import Plot, Report, Section
from refine_server.benchmarks.report.stats import interval, paired, stratified

SPREAD, EQUAL, ONE = [0.0, 50.0, 100.0], [100.0, 100.0], [30.0]


def legend(figure: Figure) -> list[str]:
    legends = [*figure.legends, *(axes.get_legend() for axes in figure.axes)]
    return [text.get_text() for of in legends if of is not None for text in of.get_texts()]


def test_one_value_and_equal_values_have_no_interval() -> None:
    assert str(interval(ONE)) == "30.0 (n = 1)"
    assert str(interval(EQUAL)) == "100.0 (all equal)"
    assert interval(ONE).bounds() == [None, None]
    spread = interval(SPREAD)
    assert spread.low is not None
    assert spread.high is not None
    assert spread.low < spread.mean < spread.high
    assert str(paired(EQUAL, EQUAL).difference) == "0.0 (all equal)"


def test_a_mean_over_tasks_has_no_interval_where_the_spread_of_one_is_unknown() -> None:
    assert str(stratified({"a": SPREAD, "b": ONE})) == "40.0 (no interval: n = 1 in a task)"
    assert str(stratified({"a": EQUAL, "b": [0.0, 0.0]})) == (
        "50.0 (no interval: all equal in each task)"
    )
    assert stratified({"a": SPREAD, "b": EQUAL}).why_none is None


def test_bars_tell_n_and_draw_no_interval_of_zero_width() -> None:
    figure = Figure()
    series = {"none": [interval(SPREAD), interval(ONE)], "ntp": [interval(EQUAL), interval(ONE)]}
    plots.bars(figure, ["qa", "code"], series, "score")
    [axes] = figure.axes
    assert [label.get_text() for label in axes.get_xticklabels()] == [
        "qa\nn = 2 to 3",
        "code\nn = 1",
    ]
    drawn = [c for c in axes.collections if len(c.get_paths())]
    assert len(drawn) == 1  # of SPREAD alone
    assert axes.get_xlabel() == plots.NO_INTERVAL


def test_bars_that_are_all_zero_stand_on_the_whole_scale() -> None:
    figure = Figure()
    plots.bars(figure, ["qa"], {"none": [interval([0.0, 0.0])]}, "score")
    assert figure.axes[0].get_ylim() == (0, 100)


def test_points_tell_n_and_why_there_is_no_interval() -> None:
    figure = Figure()
    plots.points(figure, {"none": (1.0, interval(SPREAD)), "ntp": (2.0, interval(EQUAL))})
    assert legend(figure) == ["none (n = 3)", "ntp (n = 2), all equal"]
    assert len([c for c in figure.axes[0].collections if len(c.get_paths())]) == 1


def test_the_share_of_answered_requests_is_of_all_requests() -> None:
    figure = Figure()
    plots.distribution(figure, {"2 clients": ([1.0, 3.0], 4), "1 client": ([2.0], 1)}, "seconds")
    assert legend(figure) == ["2 clients (2 of 4 answered)", "1 client (n = 1)"]
    shares = [float(max(line.get_ydata())) for line in figure.axes[0].lines]  # type: ignore[arg-type]
    assert shares == [0.5, 1.0]


def test_a_curve_is_over_all_questions_at_every_step() -> None:
    """Three questions whose loss stays as it is; the two of high loss stop after one step."""
    questions: Sequence[Sequence[float]] = [[4.0], [5.0], [1.0, 1.0, 1.0]]
    assert plots.carried_forward(questions) == [[4.0, 5.0, 1.0]] * 3
    figure = Figure()
    plots.curves(figure, {"loss": {"refine": questions}})
    [axes] = figure.axes
    [line] = axes.lines
    assert list(line.get_ydata()) == [4.0, 4.0, 4.0]  # type: ignore[arg-type]
    assert legend(figure) == ["refine (n = 3)"]


@pytest.mark.parametrize("drawn", [True, False])
def test_every_plot_of_a_report_has_its_title(tmp_path, monkeypatch, drawn: bool) -> None:
    titles: list[str] = []
    monkeypatch.setattr(Figure, "savefig", lambda self, path, **_: (
        titles.append(self.get_suptitle()), path.write_bytes(b"png")
    ))  # fmt: skip
    plot = Plot("scores", "Mean over tasks", "Scores.", lambda figure: None)
    report = Report("A run", {}, [Section("Scores", plots=[plot] if drawn else [])], {})
    report.write(tmp_path)
    assert titles == (["Mean over tasks"] if drawn else [])
