# SPDX-License-Identifier: Apache-2.0
"""The chaos script as a program: short scenarios with few streams, in which nothing may fail and no token may change, what it says of
what cannot be run, and that nothing of it stays behind. How long clients wait is bounded widely, as tests share their machine with anybody."""
import asyncio
import json
import os
import pathlib
import signal
import subprocess
import sys

import pytest

from harness import main, processes

STALL_MS = 10_000  # the script itself asks for 300: on a machine of its own
RUN = pathlib.Path(__file__).parent / "run"


def rows(tmp_path, *names, kills=2):
    out, logs = tmp_path / "rows.json", tmp_path / "logs"
    only = [word for name in names for word in ("--only", name)]
    done = subprocess.run([sys.executable, RUN, "--quick", "--streams", "8", "--kills", str(kills), "--calm-seconds", "1.5", *only,
                           "--json", out, "--logs", logs], capture_output=True, text=True, timeout=170)
    assert done.returncode in (0, 1), done.stderr
    return json.loads(out.read_text()), done.stderr


@pytest.mark.parametrize("name, faults", [("kill_worker_replica", 2), ("kill_router", 2), ("corrupt_shard", 1), ("clock_jump", 14)])
def test_nothing_fails_and_no_token_changes(tmp_path, name, faults):
    (row,), log = rows(tmp_path, name)
    wanted = {"failed": 0, "tokens_changed": 0, "hung": 0, "faults": faults}
    assert {key: row.get(key) for key in wanted} == wanted, log
    assert row["requests"] > 8 and row["stall_p99_ms"] < STALL_MS, log
    assert row.get("damaged_refused", 1) >= 1


def test_a_scenario_that_cannot_be_run_fails_and_says_why(tmp_path, monkeypatch):
    """Stand-ins for programs: they know no flag and end at once."""
    fake = tmp_path / "bin"
    fake.mkdir()
    for program in main.PROGRAMS:
        (fake / program).write_text("#!/bin/sh\necho nothing to offer\n")
        (fake / program).chmod(0o755)
    monkeypatch.setenv("SWITCHYARD_BIN_DIR", str(fake))
    got, log = rows(tmp_path, "migrate")
    assert [(row["name"], row["pass"]) for row in got] == [("migrate", False)]
    assert "has no --placement" in got[0]["misses"][0] and "logs are in" in log


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_process_stays_behind(tmp_path, how):
    logs = tmp_path / "logs"
    script = subprocess.Popen([sys.executable, RUN, "--quick", "--streams", "2", "--only", "kill_worker_replica", "--json", tmp_path / "rows.json",
                               "--logs", logs], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until(lambda: "ready" in text(logs / "kill_worker_replica" / "worker2.log"), "worker 2 ready")
        mine = [int(pid) for pid in os.listdir("/proc") if pid.isdigit() and started_by(pid, script.pid)]
        assert len(mine) >= 5
        script.send_signal(how)
        assert script.wait(20) == (130 if how != signal.SIGKILL else -signal.SIGKILL)
        until(lambda: not any(pathlib.Path(f"/proc/{pid}/exe").exists() for pid in mine), "the end of all processes")
    finally:
        script.kill()
        script.wait()


def until(condition, what):
    asyncio.run(processes.until(condition, processes.START_SECONDS, what))


def text(path):
    return path.read_text() if path.exists() else ""


def started_by(pid, parent):
    try:
        return int(pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1]) == parent
    except (OSError, IndexError):
        return False
