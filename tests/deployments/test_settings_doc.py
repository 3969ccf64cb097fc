"""docs/settings.md says what the settings tree says."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from deployments.cli_output import settings_markdown
from deployments.settings import Settings


def test_every_setting_is_documented(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("WEFT_")]:
        monkeypatch.delenv(name)
    page = (Path(__file__).parents[2] / "docs" / "settings.md").read_text(encoding="utf-8")
    assert settings_markdown(Settings()) in page


def test_a_misspelt_variable_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEFT_HTTP__PROT", "8001")
    with pytest.raises(ValueError, match=r"(?i)prot"):
        Settings()


def test_a_misspelt_group_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEFT_HPPT__PORT", "8001")
    with pytest.raises(ValueError, match="WEFT_HPPT__PORT"):
        Settings()
