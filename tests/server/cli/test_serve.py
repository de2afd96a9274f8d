from refine_server.server.settings import Settings
from support.command_line import run, run_failing


def test_help_has_every_option_and_its_variable() -> None:
    shown = run("serve", "--help")
    assert shown.exit_code == 0
    text = " ".join(shown.stdout.split())
    for name, field in Settings.model_fields.items():
        assert f"--{name.replace('_', '-')} " in text
        assert f"[env: REFINE_{name.upper()}]" in text
        assert field.description
        assert field.description in text


def test_bad_options_are_refused_with_status_2() -> None:
    run_failing(2, "--port (REFINE_PORT)", "serve", "--port", "x")
    run_failing(2, "REFINE_PROT", "serve", env={"REFINE_PROT": "1"})
    run_failing(2, "--prot", "serve", "--prot", "1")
