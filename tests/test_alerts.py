"""What Prometheus raises of what the node counts."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.servers import program

RULES = Path(__file__).parent.parent / "docker" / "prometheus" / "alerts.yml"
JOBS = 'marrow_node_given_up_total{what="job"}'
PUT_ASIDE = "marrow_node_jobs_put_aside"
PASSING = 'marrow_node_failures_total{error="PacsBusy",transient="true"}'
SEARCHES = 'marrow_node_given_up_total{what="search"}'
CALLS = 'marrow_node_given_up_total{what="call"}'
ONES = (
    "MarrowNodeJobsFail",
    "MarrowNodeTriesFail",
    "MarrowNodeSearchesFail",
    "MarrowNodeCallsFail",
)


@pytest.mark.parametrize(
    ("series", "each_minute", "raised"),
    [
        pytest.param(JOBS, "0x69 1x20", ONES[0], id="a job"),
        pytest.param(JOBS, "3x90", "", id="no job lately"),
        pytest.param(PUT_ASIDE, "0x69 1x20", ONES[0], id="a job in which workers died"),
        pytest.param(PUT_ASIDE, "3x69 1x20", "", id="such jobs that were forgotten"),
        pytest.param(PASSING, "0x69 1x20", "", id="one that may pass"),
        pytest.param(PASSING, "0x59 0+1x30", ONES[1], id="many that may pass"),
        pytest.param(SEARCHES, "0x69 1x20", ONES[2], id="a search"),
        pytest.param(CALLS, "0x69 1x20", ONES[3], id="a call"),
        pytest.param(CALLS, "0x90", "", id="no call"),
    ],
)
def test_what_fails_raises_its_own_alert(
    tmp_path: Path, series: str, each_minute: str, raised: str
) -> None:
    asked = [
        {
            "expr": f'count by (alertname) (ALERTS{{alertname=~"{"|".join(ONES)}",'
            'alertstate="firing"})',
            "eval_time": "90m",
            "exp_samples": [{"labels": f'{{alertname="{raised}"}}', "value": 1}] if raised else [],
        }
    ]
    test: dict[str, Any] = {
        "interval": "1m",
        "input_series": [{"series": series, "values": each_minute}],
        "promql_expr_test": asked,
    }
    told = {"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": [test]}
    path = tmp_path / "test.yml"
    path.write_text(json.dumps(told))
    done = subprocess.run(
        [program("promtool", "prometheus"), "test", "rules", path],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
