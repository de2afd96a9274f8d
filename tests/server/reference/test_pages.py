"""Pages that are made from the code: as committed, and complete."""

import re
from pathlib import Path

import pytest

from refine_server.server.settings import Settings
from support.command_line import run

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("page", ["settings", "metrics"])
def test_the_committed_page_is_what_the_code_makes(page: str) -> None:
    """After a change: refine-server reference PAGE > docs/PAGE.md"""
    shown = run("reference", page)
    assert shown.exit_code == 0
    assert (ROOT / "docs" / f"{page}.md").read_text() == shown.stdout


def test_every_option_has_a_row_with_a_text() -> None:
    text = (ROOT / "docs" / "settings.md").read_text()
    rows = re.findall(r"^\| (?:`--([\w-]+)`)? \| `(REFINE_\w+)` \| \S+ \| \w.+ \|$", text, re.M)
    assert [name for _, name in rows] == [
        f"REFINE_{name.upper()}" for name in Settings.model_fields
    ]
    assert "REFINE_API_KEYS" in {name for flag, name in rows if not flag}


def test_metrics_have_their_labels() -> None:
    text = (ROOT / "docs" / "metrics.md").read_text()
    assert "| `refine_requests_total` | counter | `endpoint`, `status` |" in text
    assert "| `refine_memory_bytes` | gauge | `kind` |" in text
    assert "| `refine_batch_size` | histogram | `operation` |" in text
