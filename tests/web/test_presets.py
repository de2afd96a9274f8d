"""The settings that the page shows for a preset are those that the server takes."""

import json
from pathlib import Path

from refine_server.ttt.interface.config import DocumentAdaptConfig
from refine_server.ttt.interface.presets import PRESETS

SHOWN = Path(__file__).parents[2] / "web" / "src" / "compose" / "presets.json"
NOT_SHOWN = {"preset", "trace"}
ON_DOCUMENT = {"paper": {"on": {"kind": "document"}}}
"""What the page sends beside a preset that also reads the question, which a kept adaptation does
not."""


def test_every_preset_has_all_its_settings() -> None:
    shown = json.loads(SHOWN.read_text())
    assert list(shown) == list(PRESETS)
    for name, settings in shown.items():
        config = DocumentAdaptConfig(preset=name, **ON_DOCUMENT.get(name, {}))
        assert settings == config.model_dump(mode="json", exclude=NOT_SHOWN), name
