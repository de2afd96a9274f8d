from pathlib import Path

import pytest

from refine_server.server.settings import Settings, SettingsError, check_settings, read_settings


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


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_a_flag_wins_over_a_variable_and_a_variable_over_the_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    text = 'model = "tiny"\nport = 9000\nmax-queue = 3\nmax_active = 7\n'
    file = write(tmp_path / "refine.toml", text)
    monkeypatch.setenv("REFINE_PORT", "9001")
    monkeypatch.setenv("REFINE_MAX_QUEUE", "4")
    settings = read_settings(["--config-file", str(file), "--max-queue", "5"])
    assert (settings.max_queue, settings.port, settings.max_active) == (5, 9001, 7)
    assert (settings.model, settings.threads) == ("tiny", None)


def test_a_variable_may_name_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = write(tmp_path / "refine.toml", 'model = "tiny"\n')
    monkeypatch.setenv("REFINE_CONFIG_FILE", str(file))
    assert read_settings().model == "tiny"
    assert check_settings({"port": 1}).model == "tiny"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prot = 8000", "there is no option prot"),
        ("port = 70000", r"--port \(REFINE_PORT\): must be at most 65535"),
        ("port = ", "is not TOML"),
        ('api_keys = "alice:alice-alice-alice-1"', "api_keys would be readable"),
        ('config_file = "other.toml"', "config_file is the file itself"),
        ("[server]\nport = 1", "there is no option server"),
        ('root_path = "refine/"', r"--root-path \(REFINE_ROOT_PATH\)"),
    ],
)
def test_what_is_wrong_in_a_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    file = write(tmp_path / "refine.toml", text)
    with pytest.raises(SettingsError, match=message) as refused:
        read_settings(["--config-file", str(file)])
    assert "alice-alice" not in str(refused.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"--config-file .*none\.toml cannot be read"):
        read_settings(["--config-file", str(tmp_path / "none.toml")])
