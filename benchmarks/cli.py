"""``refine-server bench``: one command for each benchmark."""

import typer

from refine_server.benchmarks.dashboard.cli import dashboard
from refine_server.benchmarks.fleet.cli import fleet, fleet_replay
from refine_server.benchmarks.quality.answers.cli import adaptation
from refine_server.benchmarks.quality.cli import examples
from refine_server.benchmarks.quality.paper.cli import paper
from refine_server.benchmarks.quality.regimes.cli import regimes
from refine_server.benchmarks.quality.replay import cli as replay
from refine_server.benchmarks.robustness.fuzz.cli import fuzz
from refine_server.benchmarks.robustness.memory.cli import soak
from refine_server.benchmarks.robustness.reliability.cli import reliability
from refine_server.benchmarks.robustness.users.cli import users
from refine_server.benchmarks.serving.cli import batch, beside, load, overhead, tracing
from refine_server.benchmarks.speed import cli as speed

app = typer.Typer(
    no_args_is_help=True,
    help="Measure speed and quality. Compare only figures of the same run: a machine's speed "
    "changes between runs.",
)

QUALITY = (
    replay.longbench, replay.longbench_score, replay.ruler_make, replay.ruler, replay.report,
    adaptation, regimes, paper, examples,
)  # fmt: skip
SERVING = load, overhead, beside, batch, fleet_replay, fleet, tracing, dashboard
ROBUSTNESS = reliability, fuzz, users, soak
SPEED = (
    speed.step, speed.evidence_step, speed.ask, speed.decode, speed.prefill, speed.memory,
    speed.peaks, speed.costs, speed.kernels, speed.page,
)  # fmt: skip

PANELS = {
    "Answers": QUALITY,
    "A server": SERVING,
    "Robustness": ROBUSTNESS,
    "The model's own work": SPEED,
}
"""Commands by their heading in the help."""

for panel, commands in PANELS.items():
    for command in commands:
        app.command(rich_help_panel=panel)(command)
