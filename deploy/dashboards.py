"""The four Grafana dashboards, made from grafana/dashboards.yaml, which has the expressions of every panel.

`python -m deploy.dashboards` writes grafana/*.json; a test compares the files with the table. The layout is computed:
panels flow from left to right in rows of 24 columns, so none can overlap.

Invariant: every panel has a unit and a description, every dashboard a datasource variable and an id of its own.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Literal

import msgspec
import yaml

FOLDER: Final = Path(__file__).parent / "grafana"
COLUMNS: Final = 24
SOURCE: Final = {"type": "prometheus", "uid": "${datasource}"}


class Panel(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`asks` maps a legend (`{{label}}` allowed) to its expression; above `warn` and `bad` its color changes."""

    title: str
    unit: str
    about: str
    asks: dict[str, str]
    kind: Literal["timeseries", "stat"] = "timeseries"
    width: int = 0
    warn: float | None = None
    bad: float | None = None
    stacked: bool = False

    @property
    def size(self) -> tuple[int, int]:
        width, height = (4, 4) if self.kind == "stat" else (8, 8)
        return self.width or width, height


class Dashboard(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    uid: str
    title: str
    about: str
    rows: dict[str, list[Panel]]


def dashboards() -> list[Dashboard]:
    return msgspec.convert(yaml.safe_load((FOLDER / "dashboards.yaml").read_text()), list[Dashboard])


def render(dashboard: Dashboard) -> dict[str, Any]:
    """Return the JSON that Grafana imports."""
    return {
        "uid": dashboard.uid,
        "title": dashboard.title,
        "description": dashboard.about,
        "tags": ["linnet"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "15s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "templating": {
            "list": [
                {
                    "name": "datasource",
                    "label": "Data source",
                    "type": "datasource",
                    "query": "prometheus",
                    "current": {},
                    "hide": 0,
                    "includeAll": False,
                    "multi": False,
                    "regex": "",
                }
            ]
        },
        "annotations": {"list": [_deploys()]},
        "links": [{"title": "Linnet", "type": "dashboards", "tags": ["linnet"], "asDropdown": True, "keepTime": True}],
        "panels": list(_panels(dashboard)),
    }


def _deploys() -> dict[str, Any]:
    return {
        "name": "Draining",
        "datasource": SOURCE,
        "enable": True,
        "iconColor": "orange",
        "expr": 'changes(linnet_gateway_draining{job="gateway"}[1m]) > 0',
        "titleFormat": "{{instance}} drains",
        "step": "15s",
    }


def _panels(dashboard: Dashboard) -> Iterator[dict[str, Any]]:
    """Row headings and panels, from left to right and top to bottom."""
    number = y = 0
    for heading, panels in dashboard.rows.items():
        number += 1
        yield {
            "id": number,
            "type": "row",
            "title": heading,
            "collapsed": False,
            "panels": [],
            "gridPos": {"x": 0, "y": y, "w": COLUMNS, "h": 1},
        }
        x, y, tallest = 0, y + 1, 0
        for panel in panels:
            width, height = panel.size
            if x + width > COLUMNS:
                x, y, tallest = 0, y + tallest, 0
            number += 1
            yield _panel(number, panel, {"x": x, "y": y, "w": width, "h": height})
            x, tallest = x + width, max(tallest, height)
        y += tallest


def _panel(number: int, panel: Panel, where: dict[str, int]) -> dict[str, Any]:
    limits = [(None, "green"), (panel.warn, "orange"), (panel.bad, "red")]
    steps = [{"color": color, "value": value} for value, color in limits if value is not None or color == "green"]
    line = {
        "fillOpacity": 30 if panel.stacked else 8,
        "lineWidth": 1,
        "showPoints": "never",
        "spanNulls": False,
        "stacking": {"mode": "normal" if panel.stacked else "none", "group": "A"},
        "thresholdsStyle": {"mode": "line" if len(steps) > 1 else "off"},
    }
    options: dict[str, Any] = {
        "timeseries": {
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
        "stat": {"colorMode": "value", "graphMode": "area", "reduceOptions": {"calcs": ["lastNotNull"]}},
    }
    defaults: dict[str, Any] = {"unit": panel.unit, "thresholds": {"mode": "absolute", "steps": steps}}
    if panel.kind == "timeseries":
        defaults |= {"min": 0, "color": {"mode": "palette-classic"}, "custom": line}
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.about,
        "datasource": SOURCE,
        "gridPos": where,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": options[panel.kind],
        "targets": [
            {"refId": chr(ord("A") + at), "datasource": SOURCE, "expr": expression, "legendFormat": legend}
            for at, (legend, expression) in enumerate(panel.asks.items())
        ],
    }


def text(dashboard: Dashboard) -> str:
    return json.dumps(render(dashboard), indent=1) + "\n"


def main() -> None:
    for dashboard in dashboards():
        (FOLDER / f"{dashboard.name}.json").write_text(text(dashboard))


if __name__ == "__main__":
    main()
