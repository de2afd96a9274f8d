"""Prometheus' rules: valid, tested, complete, and each alert has its paragraph in the docs."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from refine_server.server.app import create_app
from refine_server.server.settings import Settings

ROOT = Path(__file__).parents[2]
RULES = ROOT / "deploy" / "prometheus"
FILES = ("recording_rules.yml", "alerts.yml")

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None and "CI" not in os.environ,
    reason="needs Debian's package prometheus",
)


def promtool(*arguments: str) -> None:
    done = subprocess.run(
        ["promtool", *arguments], cwd=RULES, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_the_rules_are_valid() -> None:
    promtool("check", "rules", *FILES)
    promtool("check", "config", "prometheus.yml")


@needs_promtool
def test_each_alert_fires_when_it_should_and_only_then() -> None:
    promtool("test", "rules", "alerts_test.yml")


def alerts() -> list[dict[str, object]]:
    groups = yaml.safe_load((RULES / "alerts.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def test_each_alert_has_a_test_of_its_own() -> None:
    tested = yaml.safe_load((RULES / "alerts_test.yml").read_text())["tests"]
    fired = {
        case["alertname"]
        for test in tested
        for case in test.get("alert_rule_test", [])
        if case["exp_alerts"]
    }
    assert fired == {alert["alert"] for alert in alerts()}


def test_each_alert_has_a_paragraph_and_a_row_in_the_docs() -> None:
    page = (ROOT / "docs" / "alerts.md").read_text()
    headings = re.findall(r"^## (\w+)$", page, re.MULTILINE)
    rows = dict(re.findall(r"^\| \[(\w+)\]\(#\w+\) \| (\w+) \|", page, re.MULTILINE))
    severities = {alert["alert"]: alert["labels"]["severity"] for alert in alerts()}  # type: ignore[index]
    assert set(headings) == set(severities)
    assert rows == severities
    for alert in alerts():
        runbook = alert["annotations"]["runbook"]  # type: ignore[index]
        assert runbook == f"docs/alerts.md#{str(alert['alert']).lower()}"


def test_the_rules_name_only_metrics_that_a_server_exports() -> None:
    """A renamed metric would leave an alert that can never fire."""
    registry = create_app(Settings(model="tiny", store="none")).state.metrics.registry
    exported = {
        name
        for family in registry.collect()
        for name in (family.name, f"{family.name}_total", f"{family.name}_info")
    }
    text = "".join((RULES / file).read_text() for file in FILES)
    named = set(re.findall(r"(?<![:\w])(?:refine|process)_\w+", re.sub(r"instance:\w+", "", text)))
    assert len(named) > 15
    assert named <= exported
