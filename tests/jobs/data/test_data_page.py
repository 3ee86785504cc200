from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from jobs.data.config import DataConfig
from jobs.yaml12 import Loader

PAGE = (Path(__file__).parents[3] / "docs" / "data.md").read_text()
SNIPPETS = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)


def test_the_page_has_snippets() -> None:
    assert len(SNIPPETS) >= 5


@pytest.mark.parametrize("snippet", SNIPPETS)
def test_every_snippet_of_the_data_page_is_a_valid_config(snippet: str) -> None:
    DataConfig.model_validate(yaml.load(snippet, Loader=Loader)["data"])


@pytest.mark.parametrize("setting", DataConfig.model_fields)
def test_the_data_page_shows_every_setting(setting: str) -> None:
    assert any(re.search(rf"^  {setting}:", snippet, re.MULTILINE) for snippet in SNIPPETS)


@pytest.mark.parametrize("setting", ["max_image_bytes", "max_image_pixels", "max_broken_share"])
def test_the_limits_on_the_data_page_are_the_defaults(setting: str) -> None:
    shown = re.search(rf"^  {setting}: +(\S+)", PAGE, re.MULTILINE)
    assert shown is not None
    assert float(shown[1]) == DataConfig.model_fields[setting].default
