import pytest

from refine_server.server.settings import Settings, SettingsError, read_settings


def test_arguments_win_over_variables_and_variables_over_defaults(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("REFINE_PORT", "9001")
    monkeypatch.setenv("REFINE_MAX_QUEUE", "3")
    monkeypatch.setenv("REFINE_THREADS", "")
    settings = read_settings(["--max-queue", "5", "--dtype=float64"])
    assert (settings.port, settings.max_queue, settings.dtype) == (9001, 5, "float64")
    assert (settings.threads, settings.model) == (None, "smollm2")


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("REFINE_PORT", "x", r"--port \(REFINE_PORT\): .*integer"),
        ("REFINE_PORT", "70000", r"must be at most 65535"),
        ("REFINE_DTYPE", "int4", r"REFINE_DTYPE"),
        ("REFINE_REQUEST_TIMEOUT_SECONDS", "inf", r"finite"),
        ("REFINE_PROT", "8000", r"REFINE_PROT: there is no such option"),
    ],
)
def test_bad_variables_are_named(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, message: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsError, match=message):
        read_settings()


def test_unrelated_variables_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REFINE_CACHE_DIR", "/tmp")
    monkeypatch.setenv("REFINE_SERVER_SERVICE_HOST", "10.0.0.1")
    assert read_settings() == Settings()


def test_help_shows_no_secret_and_no_type_of_python(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        read_settings(["--help"])
    shown = capsys.readouterr().out
    assert "--window" in shown
    assert "(default: unset)" in shown
    assert not any(word in shown for word in ("SecretStr", "--api-keys ", "null", "None"))
