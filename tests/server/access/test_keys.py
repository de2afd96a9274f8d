"""Who has access, under which name, and that keys never appear in any output."""

import hashlib
import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient
from typer.testing import CliRunner

from refine_server.server.access.keys import ANYONE, Keyring, Quotas, new_key
from refine_server.server.cli.main import app
from refine_server.server.settings import Settings, SettingsError, read_settings
from refine_server.ttt.interface.errors import RequestError
from refine_server.ttt.interface.requests import LOCAL

BODY = {"document": "a b c", "query": "who", "adapt": {"optimizer": {"steps": 1}}}
ALICE, BOB = "alice-alice-alice-1", "bob-bob-bob-bob-bob-2"
KEYS = f"alice:{ALICE},bob:{BOB}"


def sha256(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


@pytest.fixture
def locked(make_client: Callable[..., TestClient]) -> TestClient:
    return make_client(api_keys=KEYS)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        bearer("wrong"),
        bearer(ALICE + "x"),
        bearer(""),
        bearer(sha256(ALICE)),
        {"authorization": f"Basic {ALICE}"},
        {"authorization": ALICE},
        {"x-api-key": "wrong"},
        {"x-api-key": "é".encode("latin-1").decode("latin-1")},
    ],
)
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/answers"),
        ("GET", "/v1/models"),
        ("GET", "/metrics"),
        ("GET", "/version"),
        ("GET", "/docs"),
        ("GET", "/openapi.json"),
        ("POST", "/health/verify"),
        ("GET", "/no/such/path"),
        ("POST", "/health/verify/"),
        ("GET", "/v1/models/"),
        ("GET", "//health/live"),
    ],
)
def test_without_a_valid_key_nothing_is_answered(
    locked: TestClient, fake: Any, method: str, path: str, headers: dict[str, str]
) -> None:
    fake.turns.clear()
    given = {name: value.encode("latin-1") for name, value in headers.items()}
    response = locked.request(method, path, headers=given, content=b"{")
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Bearer"
    assert response.json()["error"]["type"] == "authentication_error"
    assert response.json()["error"]["code"] == "invalid_api_key"
    assert fake.turns == []


def test_a_slash_at_the_end_does_not_lock_a_probe(locked: TestClient) -> None:
    assert locked.get("/health/live/").status_code == 200


def test_every_route_but_the_probes_needs_a_key(locked: TestClient) -> None:
    paths = locked.get("/openapi.json", headers=bearer(ALICE)).json()["paths"]
    for path, operations in paths.items():
        for method in operations:
            status = locked.request(method, path.replace("{", "").replace("}", "")).status_code
            assert (status == 401) == (path not in ("/health/live", "/health/ready")), path


@pytest.mark.parametrize("headers", [bearer(BOB), {"authorization": f"bearer  {BOB}"}])
def test_work_belongs_to_the_key_that_asked(
    locked: TestClient, fake: Any, headers: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    owners = []
    start = fake.start

    def recording(work: Any, *options: Any) -> Any:
        owners.append(work.request.owner)
        return start(work, *options)

    monkeypatch.setattr(fake, "start", recording)
    assert locked.post("/v1/answers", json=BODY, headers=headers).status_code == 200
    assert locked.post("/v1/answers", json=BODY, headers={"x-api-key": ALICE}).status_code == 200
    assert owners == ["bob", "alice"]


def test_without_keys_the_server_is_open_and_all_work_is_local() -> None:
    keyring = Keyring.of(Settings())
    assert keyring.is_open
    assert keyring.identify(None) is keyring.identify("whatever") is ANYONE
    assert ANYONE.name == LOCAL


def test_every_hash_is_compared_whichever_matches(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []

    def compare(given: str, kept: str) -> bool:
        compared.append(kept)
        return given == kept

    monkeypatch.setattr("refine_server.server.access.keys.hmac.compare_digest", compare)
    keyring = Keyring.of(Settings(api_keys=KEYS))  # type: ignore[arg-type]
    for key, name in ((ALICE, "alice"), (BOB, "bob")):
        compared.clear()
        principal = keyring.identify(key)
        assert principal is not None
        assert principal.name == name
        assert compared == [sha256(ALICE), sha256(BOB)]
    compared.clear()
    assert keyring.identify("nobody") is None
    assert len(compared) == 2


def test_key_files_in_both_forms(tmp_path: Path) -> None:
    toml = tmp_path / "keys.toml"
    toml.write_text(
        f'[[keys]]\nname = "alice"\nsha256 = ["{sha256(ALICE)}", "{sha256("new")}"]\n'
        "[keys.quotas]\nrequests_per_minute = 3\nadaptation_bytes = 0\n"
    )
    entries = {"keys": [{"name": "alice", "sha256": sha256(ALICE)}]}
    (tmp_path / "keys.json").write_text(json.dumps(entries))
    keyring = Keyring.of(Settings(api_keys_file=toml, api_keys=f"bob:{BOB}"))  # type: ignore[arg-type]
    for key in (ALICE, "new"):
        alice = keyring.identify(key)
        assert alice is not None
        assert alice.quotas == Quotas(requests_per_minute=3, adaptation_bytes=0)
    assert set(keyring.principals) == {"alice", "bob"}
    assert Keyring.of(Settings(api_keys_file=tmp_path / "keys.json")).identify(ALICE)


GOOD = {"name": "a", "sha256": "0" * 64}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON text"),
        ("[" * 100_000, "is not JSON text"),
        ("[]", "must be an object"),
        ('{"keys": []}', "keys: must have at least 1 element"),
        ({**GOOD, "sha256": "abc"}, r"keys\.0\.sha256\.0: .*pattern"),
        ({**GOOD, "key": "plain"}, r"keys\.0\.key: there is no such field"),
        ({**GOOD, "name": "a b"}, "name of a key must have"),
        ({**GOOD, "name": "local"}, "server without keys"),
        ({**GOOD, "quotas": {"requests_per_minute": 0}}, "requests_per_minute: must be at least 1"),
        ({**GOOD, "quotas": {"requests_per_hour": 1}}, "requests_per_hour: there is no such field"),
        ({**GOOD, "sha256": ["0" * 64, "0" * 64]}, "occurs twice"),
    ],
)
def test_a_bad_key_file_fails_the_start(tmp_path: Path, content: Any, message: str) -> None:
    path = tmp_path / "keys.json"
    path.write_text(content if isinstance(content, str) else json.dumps({"keys": [content]}))
    with pytest.raises(SettingsError, match=message) as refused:
        Keyring.of(Settings(api_keys_file=path))
    assert "plain" not in str(refused.value)


def test_a_key_file_that_is_not_there_or_not_text(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"keys\.toml cannot be read: No such file"):
        Keyring.of(Settings(api_keys_file=tmp_path / "keys.toml"))
    (tmp_path / "keys.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(SettingsError, match="not TOML text in UTF-8"):
        Keyring.of(Settings(api_keys_file=tmp_path / "keys.toml"))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("hush-hush-hush-hush", "entry 1 must have the form name:key"),
        ("alice:hush", "entry 1: the key of alice must have at least 16"),
        ("alice:hush hush hush hush", "no space"),
        (f"alice:{ALICE},", "entry 2"),
        (f"alice:{ALICE},alice:{BOB}", "name 'alice' occurs twice"),
        (f"alice:{ALICE},bob:{ALICE}", "occurs twice"),
        (f"local:{ALICE}", "server without keys"),
    ],
)
def test_a_bad_variable_fails_the_start_without_showing_keys(value: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message) as refused:
        Keyring.of(Settings(api_keys=value))  # type: ignore[arg-type]
    assert "hush" not in str(refused.value)
    assert ALICE not in str(refused.value)


@pytest.mark.parametrize("arguments", [["--api-keys", KEYS], [f"--api-keys={KEYS}"]])
def test_keys_are_no_argument(arguments: list[str]) -> None:
    with pytest.raises(SettingsError, match="every user of the machine can read") as refused:
        read_settings(arguments)
    assert ALICE not in str(refused.value)


def test_a_new_key_is_shown_once_and_its_entry_recognises_it(tmp_path: Path) -> None:
    made = CliRunner().invoke(app, ["keys", "new", "alice"])
    assert made.exit_code == 0
    key = made.stderr.split()[-1]
    assert key not in made.stdout
    assert tomllib.loads(made.stdout)["keys"][0] == {"name": "alice", "sha256": sha256(key)}
    (tmp_path / "keys.toml").write_text(made.stdout)
    found = Keyring.of(Settings(api_keys_file=tmp_path / "keys.toml")).identify(key)
    assert found is not None
    assert found.name == "alice"
    assert new_key("alice")[0] != key
    assert CliRunner().invoke(app, ["keys", "new", "a/b"]).exit_code == 2


def test_no_secret_is_in_logs_dumps_or_errors(
    make_client: Callable[..., TestClient], fake: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    client = make_client(api_keys=KEYS)
    fake.fail("crash")
    fake.fail("refused", RequestError("query is unfit", "query", "unfit"))
    settings = client.app.state.settings  # type: ignore[attr-defined]
    shown = [repr(settings), str(settings.model_dump()), settings.model_dump_json()]
    shown.append(repr(client.app.state.keyring))  # type: ignore[attr-defined]
    for headers in (bearer(ALICE), {"x-api-key": BOB}, bearer("wrong-wrong-wrong-wrong")):
        for document in ("a", "crash", "refused"):
            body = {**BODY, "document": document, "colour": 1}
            shown.append(client.post("/v1/answers", json=body, headers=headers).text)
            del body["colour"]
            shown.append(client.post("/v1/answers", json=body, headers=headers).text)
    shown.append(client.get("/metrics", headers=bearer(ALICE)).text)
    everything = caplog.text + "".join(shown)
    for secret in (ALICE, BOB, "wrong-wrong"):
        assert secret not in everything
    [answered] = [r for r in caplog.records if r.getMessage() == "POST /v1/answers 200"][:1]
    assert vars(answered)["key"] == "alice"
