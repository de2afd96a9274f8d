"""What users do, on the tiny model: an application, an operator, a researcher."""

import json

import pytest

from support.command_line import run


@pytest.mark.parametrize("parts", ["application,operations", "research"])
def test_users_see_what_they_expect(parts: str) -> None:
    shown = run("bench", "users", "--model", "tiny", "--parts", parts, "--json")
    assert shown.exit_code == 0, shown.output
    told = json.loads(shown.stdout.splitlines()[-1])
    assert told["failed"] == []
    assert told["passed"] > 0
