"""The dashboards' files, compared with the table that they are made from and with Grafana's rules."""

from __future__ import annotations

import json
from itertools import combinations
from typing import Any

import pytest
import yaml

from deploy.dashboards import COLUMNS, FOLDER, Dashboard, dashboards, text

# Units of Grafana's that these dashboards use; a wrong one is shown as text, not refused.
UNITS = {"none", "short", "s", "bytes", "Bps", "ops", "reqps", "cps", "percent", "percentunit"}


def loaded(name: str) -> dict[str, Any]:
    made: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text())
    return made


NAMES = [dashboard.name for dashboard in dashboards()]


@pytest.mark.parametrize("dashboard", dashboards(), ids=NAMES)
def test_files_are_made_from_the_table(dashboard: Dashboard) -> None:
    """The JSON was neither edited by hand nor left old: `python -m deploy.dashboards` makes the same."""
    assert (FOLDER / f"{dashboard.name}.json").read_text() == text(dashboard)


def test_there_are_no_other_files() -> None:
    """The provisioned dashboards are those of the table."""
    assert sorted(path.stem for path in FOLDER.glob("*.json")) == sorted(NAMES)
    assert len({dashboard.uid for dashboard in dashboards()}) == len(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_no_panel_covers_another(name: str) -> None:
    """Every panel has a place of its own within the grid, and an id."""
    panels = loaded(name)["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    places = [panel["gridPos"] for panel in panels]
    for at in places:
        assert at["x"] + at["w"] <= COLUMNS
    for one, other in combinations(places, 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        below = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert beside or below, (one, other)


@pytest.mark.parametrize("name", NAMES)
def test_every_panel_says_what_it_shows(name: str) -> None:
    """Every panel has a unit of Grafana, a description, a title that is unique in its row, and the selected data
    source."""
    for panel in loaded(name)["panels"]:
        if panel["type"] == "row":
            continue
        assert panel["fieldConfig"]["defaults"]["unit"] in UNITS, panel["title"]
        assert panel["description"].endswith("."), panel["title"]
        assert panel["datasource"]["uid"] == "${datasource}"
        assert panel["targets"], panel["title"]
        assert all("(rate(" not in one["expr"] or "$__rate_interval" in one["expr"] for one in panel["targets"])


def test_provisioned_folder_is_the_mounted_one() -> None:
    """The folder that compose mounts is the one that is provisioned."""
    (provider,) = yaml.safe_load((FOLDER / "provisioning/dashboards/linnet.yaml").read_text())["providers"]
    compose = yaml.safe_load((FOLDER.parent / "compose.yaml").read_text())
    assert f"./grafana:{provider['options']['path']}:ro" in compose["services"]["grafana"]["volumes"]
