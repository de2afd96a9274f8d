from collections.abc import Callable
from typing import Any

from refine_server.server.settings import Settings

Run = Callable[..., Any]


def test_help_has_every_option_and_its_variable(run: Run) -> None:
    shown = run("serve", "--help")
    assert shown.exit_code == 0
    text = " ".join(shown.stdout.split())
    for name, field in Settings.model_fields.items():
        assert f"--{name.replace('_', '-')} " in text
        assert f"[env: REFINE_{name.upper()}]" in text
        assert field.description
        assert field.description in text


def test_bad_options_are_refused_with_status_2(fails: Run) -> None:
    fails(2, "--port (REFINE_PORT)", "serve", "--port", "x")
    fails(2, "REFINE_PROT", "serve", env={"REFINE_PROT": "1"})
    fails(2, "--prot", "serve", "--prot", "1")
