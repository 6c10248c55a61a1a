"""The dashboard and the alert rules: they are well-formed, and speak of metrics and labels that exist."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from postroom.metric_names import METRICS

DOCS = Path(__file__).parents[1] / "docs"
RULES = DOCS / "monitoring/alerts.yml"
DASHBOARD = DOCS / "monitoring/grafana.json"


def expressions() -> list[str]:
    """Every expression of the dashboard, and of the rules."""
    panels = json.loads(DASHBOARD.read_text())["panels"]
    drawn = [target["expr"] for panel in panels for target in panel["targets"]]
    rules = RULES.read_text()
    ruled = [one.partition("labels:")[0] for one in rules.split("expr:")[1:]]
    assert len(ruled) == rules.count("- alert:") > 5
    return drawn + ruled


def exposed() -> set[str]:
    """Every name of a sample."""
    names = set()
    for name, metric in METRICS.items():
        parts = ("_bucket", "_sum", "_count") if metric.kind == "histogram" else ("",)
        names |= {name + part for part in parts}
    return names


def test_every_expression_names_metrics_that_exist() -> None:
    """And the labels that they select by are theirs."""
    for expression in expressions():
        names = re.findall(r"\bpostroom_\w+", expression)
        assert names, expression
        assert set(names) <= exposed(), expression
        for name, selected in re.findall(r"(postroom_\w+)\{([^}]*)\}", expression):
            labels = set(re.findall(r"(\w+)\s*[!=]", selected))
            metric = METRICS.get(name) or METRICS[re.sub(r"_(bucket|sum|count)$", "", name)]
            assert labels <= set(metric.labels), expression


def test_what_every_instance_says_is_not_added_up() -> None:
    """A metric of scope `database` stands in a `max without (instance)`: one of them, not their sum."""
    for expression in expressions():
        for name in re.findall(r"\bpostroom_\w+", expression):
            metric = METRICS.get(name) or METRICS[re.sub(r"_(bucket|sum|count)$", "", name)]
            if metric.scope == "database":
                pattern = rf"max without \(instance(, \w+)?\) \((rate\(|increase\()?{name}"
                assert re.search(pattern, expression), expression


def test_every_metric_is_on_the_dashboard() -> None:
    """But for the one that says that the database is away, when there is nothing to draw."""
    drawn = DASHBOARD.read_text()
    assert [name for name in METRICS if name not in drawn] == ["postroom_database_up"]


def test_every_rule_has_a_chapter_of_what_to_do() -> None:
    """Named as the rule, in docs/operations.md."""
    rules = RULES.read_text()
    alerts = re.findall(r"- alert: (\w+)", rules)
    chapters = re.findall(r"^## (\w+)$", (DOCS / "operations.md").read_text(), flags=re.MULTILINE)
    assert chapters == alerts
    assert re.findall(r"runbook: docs/operations\.md#(\w+)", rules) == [alert.lower() for alert in alerts]


def test_prometheus_takes_the_rules(tmp_path: Path) -> None:
    """promtool checks them, and each expression of the dashboard as a rule of its own."""
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("needs Debian's package prometheus")
    drawn = tmp_path / "drawn.yml"
    panels = json.loads(DASHBOARD.read_text())["panels"]
    recorded = [
        {"record": f"drawn:{panel['id']}:{place}", "expr": target["expr"].replace("$__rate_interval", "5m")}
        for panel in panels
        for place, target in enumerate(panel["targets"])
    ]
    drawn.write_text(json.dumps({"groups": [{"name": "drawn", "rules": recorded}]}))
    for rules in (RULES, drawn):
        checked = subprocess.run(
            [promtool, "check", "rules", str(rules)], capture_output=True, text=True, check=False
        )
        assert checked.returncode == 0, checked.stdout + checked.stderr


def test_prometheus_takes_the_configuration_of_the_page(tmp_path: Path) -> None:
    """docs/metrics.md shows how `/metrics` is scraped."""
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("needs Debian's package prometheus")
    shown = re.findall(
        r"```yaml\n# (prometheus\.yml)\n(.*?)```", (DOCS / "metrics.md").read_text(), re.DOTALL
    )
    assert len(shown) == 1
    (tmp_path / shown[0][0]).write_text(shown[0][1])
    checked = subprocess.run(
        [promtool, "check", "config", str(tmp_path / shown[0][0])],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert checked.returncode == 0, checked.stdout + checked.stderr


RULES_TEST = """
rule_files: [{rules}]
evaluation_interval: 1m
tests:
  - interval: 1m
    input_series:
      - {{series: 'postroom_database_up{{instance="a"}}', values: '1x60'}}
      - {{series: 'postroom_workers{{instance="a",queue="email",state="busy"}}', values: '1x10 0x50'}}
      - {{series: 'postroom_workers{{instance="b",queue="email",state="busy"}}', values: '1x10 0x50'}}
      - {{series: 'postroom_workers{{instance="a",queue="email",state="asleep"}}', values: '0x60'}}
      - {{series: 'postroom_queue_oldest_due_seconds{{instance="a",queue="email"}}', values: '0x10 400x50'}}
      - {{series: 'postroom_queue_oldest_due_seconds{{instance="a",queue="webhook"}}', values: '400x60'}}
      - {{series: 'postroom_queue_depth{{instance="a",queue="webhook",state="limit_global"}}',
         values: '5x60'}}
      - {{series: 'postroom_queue_depth{{instance="b",queue="email",state="paused"}}', values: '0x20 5x40'}}
    alert_rule_test:
      - {{eval_time: 5m, alertname: PostroomNoWorker}}
      - eval_time: 15m
        alertname: PostroomNoWorker
        exp_alerts:
          - exp_labels: {{severity: critical, queue: email}}
            exp_annotations:
              summary: No worker of queue email is alive
              runbook: docs/operations.md#postroomnoworker
      - eval_time: 15m
        alertname: PostroomQueueStands
        exp_alerts:
          - exp_labels: {{severity: critical, queue: email}}
            exp_annotations:
              summary: The oldest due row of queue email has been due for 6m 40s
              runbook: docs/operations.md#postroomqueuestands
      - {{eval_time: 25m, alertname: PostroomQueueStands}}
      - {{eval_time: 15m, alertname: PostroomDown}}
"""


def test_rules_fire_when_they_should(tmp_path: Path) -> None:
    """No worker, a queue that stands: not before, and not where a limit or a pause holds the queue."""
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("needs Debian's package prometheus")
    test = tmp_path / "test.yml"
    test.write_text(RULES_TEST.format(rules=RULES))
    ran = subprocess.run([promtool, "test", "rules", str(test)], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
