"""perf/host_launch.py, which compiles for another machine's GPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

import host_launch


@pytest.mark.slow
def test_a_layers_launches_are_counted_and_timed(tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [sys.executable, host_launch.__file__, "--rows", "1,40", "--repeats", "20", "--json", str(out)]
    subprocess.run(command, check=True, env=environment, capture_output=True)
    one, many = json.loads(out.read_text())
    assert (one["rows"], one["launches"]) == (1, 6) and (many["rows"], many["launches"]) == (40, 9)
    for record in (one, many):
        median, low = record["us"]
        assert 10 < low <= median < 100_000
