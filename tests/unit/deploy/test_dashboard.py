"""The dashboard against what the daemon exports: a renamed metric must not leave an empty panel."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from devices.offers import Counts
from devices.statistics import PoolStatistics, Statistics
from multus.kube.requests import get_pod
from multus.metrics import Metrics

DASHBOARD: dict[str, Any] = json.loads((Path(__file__).parents[3] / "deploy/grafana/multus.json").read_text())
EXPRESSIONS = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]


@pytest.fixture(scope="module")
def exported() -> dict[str, set[str]]:
    """Every series that the daemon exports, with its labels."""
    metrics = Metrics()
    metrics.count([])
    pool = PoolStatistics(resource="a/b", devices=1, healthy=1, allocated=0, followed=True, counts=Counts())
    metrics.watch_devices(lambda: Statistics(pools=(pool,)))
    metrics.requested(get_pod("default", "web"), 200)
    with metrics.call("ADD"), metrics.delegate("ADD", "default/net", "macvlan"):
        pass
    found: dict[str, set[str]] = {}
    for name, labels in re.findall(r"^(\w+)(?:\{(.*)\})? ", metrics.text().decode(), re.MULTILINE):
        found.setdefault(name, set()).update(re.findall(r'(\w+)="', labels))
    return found


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_every_expression_asks_for_what_is_exported(expression: str, exported: dict[str, set[str]]) -> None:
    names = re.findall(r"(?:multus|process)_\w+", expression)
    assert names
    for name in names:
        assert name in exported
    asked = set(re.findall(r"(\w+)=~?\"", expression))
    for grouped in re.findall(r"sum by \(([^)]*)\)", expression):
        asked |= {each.strip() for each in grouped.split(",")}
    labels = {label for name in names for label in exported[name]} | {"instance"}  # which Prometheus adds
    assert asked <= labels


def test_every_metric_of_ours_is_shown(exported: dict[str, set[str]]) -> None:
    text = " ".join(EXPRESSIONS)
    base = {re.sub(r"_(bucket|count|sum|created|total)$", "", name) for name in exported if name.startswith("multus_")}
    assert all(name in text for name in base)


def test_panels_do_not_lie_upon_each_other() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken
        assert place["x"] + place["w"] <= 24
        taken |= cells
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
