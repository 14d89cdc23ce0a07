"""Prometheus' rules and Grafana's dashboard: valid, and about metrics that a live app has."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from tests.service.app_fixtures import app_with

DEPLOY = Path(__file__).parents[3] / "service" / "deploy"
RULES = [
    rule["expr"]
    for group in yaml.safe_load((DEPLOY / "prometheus" / "alerts.yml").read_text())["groups"]
    for rule in group["rules"]
]
PANELS = json.loads((DEPLOY / "grafana" / "eca-hub.json").read_text())["panels"]
QUERIES = [target["expr"] for panel in PANELS for target in panel["targets"]]
# Prometheus' own, about its scraping.
OWN = {"up"}
FUNCTIONS = {"sum", "max", "rate", "histogram_quantile", "by", "and"}
LABELS = {"job", "instance", "code", "route", "model", "revision", "lane", "le"}


@pytest.fixture(scope="module")
def names() -> set[str]:
    """Names of all samples after a success, a rejection and a client error."""
    with TestClient(app_with("acme/digits"), raise_server_exceptions=False) as client:
        client.post("/v1/classify", content=b"1")
        client.post("/v1/classify", content=b"broken")
        text = client.get("/metrics").text
    families = list(text_string_to_metric_families(text))
    # A counter or histogram without samples yet still has its family.
    declared = {f"{family.name}_total" for family in families if family.type == "counter"}
    return {sample.name for family in families for sample in family.samples} | declared


@pytest.mark.parametrize("expression", [*RULES, *QUERIES])
def test_every_metric_of_a_rule_or_panel_exists(expression: str, names: set[str]) -> None:
    bare = re.sub(r'"[^"]*"|\[[^]]*\]', "", expression)
    words = set(re.findall(r"[a-z_]{2,}", bare)) - FUNCTIONS - LABELS - OWN
    assert words or "up" in bare
    assert words <= names


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed: apt-get install prometheus")
@pytest.mark.parametrize("arguments", [["check", "rules", "alerts.yml"], ["test", "rules", "alerts_test.yml"]])
def test_promtool_accepts_the_rules_and_they_fire_as_described(arguments: list[str]) -> None:
    done = subprocess.run(
        ["promtool", *arguments], cwd=DEPLOY / "prometheus", capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
