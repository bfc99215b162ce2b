"""deploy/monitoring as files: what promtool says of them, and that all of Compose agrees."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "deploy" / "monitoring"
DASHBOARD = FOLDER / "grafana" / "dashboards" / "ddpm.json"
COMPOSE = ("docker-compose.yml", "docker-compose.cpu.yml")


def expressions() -> list[str]:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    return [target["expr"] for panel in panels for target in panel["targets"]]


def promtool(*arguments: str, folder: Path = FOLDER) -> None:
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not here; apt-get install prometheus")
    said = subprocess.run(["promtool", *arguments], cwd=folder, capture_output=True, text=True)
    assert said.returncode == 0, said.stdout + said.stderr


def test_the_configuration_of_prometheus_is_sound() -> None:
    promtool("check", "config", "prometheus.yml")


def test_alerts_fire_when_they_should_and_not_before() -> None:
    promtool("test", "rules", "alerts_test.yml")


def test_every_expression_of_the_dashboard_can_be_read(tmp_path: Path) -> None:
    rules = [{"record": f"panel:{n}", "expr": expr} for n, expr in enumerate(expressions())]
    file = tmp_path / "rules.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    promtool("check", "rules", str(file), folder=tmp_path)


def test_every_alert_says_what_is_wrong_and_what_to_do() -> None:
    [group] = yaml.safe_load((FOLDER / "alerts.yml").read_text())["groups"]
    for rule in group["rules"]:
        assert set(rule["annotations"]) == {"summary", "remedy"}, rule["alert"]
        assert rule["labels"]["severity"] in ("page", "ticket"), rule["alert"]


def test_the_panels_of_the_dashboard_do_not_overlap() -> None:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels]
    assert len(set(places)) == len(panels)
    assert len({panel["id"] for panel in panels}) == len(panels)


def test_the_compose_files_follow_composes_schema() -> None:
    command = [sys.executable, "-m", "check_jsonschema"]
    said = subprocess.run(
        [*command, "--builtin-schema", "vendor.compose-spec", *COMPOSE],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert said.returncode == 0, said.stdout + said.stderr


@pytest.mark.parametrize("file", COMPOSE)
def test_the_monitoring_profile_mounts_what_its_configurations_name(file: str) -> None:
    services = monitored(file)
    assert set(services) == {"prometheus", "grafana"}
    mounts = [mount for service in services.values() for mount in service["volumes"]]
    # The key's file has a default, for services without keys.
    sources = [re.sub(r"\$\{\w+:-(.*?)\}", r"\1", mount).split(":")[0] for mount in mounts]
    for source in sources:
        assert not source.startswith("./") or (ROOT / source).exists(), source
    inside = {mount.removesuffix(":ro").rpartition(":")[2] for mount in mounts}
    config = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
    [scrape] = config["scrape_configs"]
    named = [*config["rule_files"], scrape["authorization"]["credentials_file"], "prometheus.yml"]
    assert {f"/etc/prometheus/{name}" for name in named} <= inside
    [dashboards] = provisioned("dashboards")["providers"]
    assert dashboards["options"]["path"] in inside
    api, port = scrape["static_configs"][0]["targets"][0].split(":")
    assert api in compose(file)["services"]
    assert f"{port}" in str(compose(file)["services"][api]["ports"])
    [source] = provisioned("datasources")["datasources"]
    assert source["url"] == "http://prometheus:9090"
    assert all(of["datasource"]["uid"] == source["uid"] for of in panels() if "datasource" in of)


def test_queries_ask_for_metrics_that_there_are() -> None:
    listed = set(re.findall(r"`(ddpm_\w+)", (ROOT / "docs/reference/metrics.md").read_text()))
    rules = yaml.safe_load((FOLDER / "alerts.yml").read_text())["groups"][0]["rules"]
    for query in [*expressions(), *(rule["expr"] for rule in rules)]:
        for name in re.findall(r"\bddpm_\w+", query):
            parts = {name, re.sub("_(bucket|sum|count)$", "", name)}
            assert parts & listed, f"{name} in {query}"


def compose(file: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / file).read_text())
    return found


def monitored(file: str) -> dict[str, Any]:
    services = compose(file)["services"].items()
    return {name: found for name, found in services if found.get("profiles") == ["monitoring"]}


def panels() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(DASHBOARD.read_text())["panels"]
    return found


def provisioned(kind: str) -> dict[str, Any]:
    [file] = (FOLDER / "grafana" / "provisioning" / kind).iterdir()
    found: dict[str, Any] = yaml.safe_load(file.read_text())
    return found
