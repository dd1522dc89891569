# SPDX-License-Identifier: Apache-2.0
"""What the measurement runs on."""
import json
import os
import pathlib
import platform
import subprocess

ROOT = pathlib.Path(__file__).resolve().parents[3]


def cpu_model():
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or "unknown"


def memory_bytes():
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def commit():
    out = subprocess.run(["git", "describe", "--always", "--dirty", "--abbrev=12"], cwd=ROOT, capture_output=True, text=True)
    return out.stdout.strip() or "unknown"


def describe(cores):
    return {"cpu": cpu_model(), "cores": cores, "memory_gb": round(memory_bytes() / 1e9, 1), "system": platform.platform()}


def capabilities(processes, bin_dir, threads, file=None):
    """Bandwidth and peaks, as machine_bench measures them now."""
    return json.loads(processes.run(bin_dir / "machine_bench", threads, *([file] if file else [])))


def better(first, second):
    """Of two runs of machine_bench the larger of each figure."""
    return {k: second.get(k) if v is None else max(v, second.get(k) or v) for k, v in first.items()}
