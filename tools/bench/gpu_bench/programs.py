# SPDX-License-Identifier: Apache-2.0
"""Runs what measures, and takes its lines of JSON. What fails costs its own figures only."""
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile

from . import build, figures

SECONDS = 900  # of one program, the peer's compiling among them
SMI = "name,driver_version,compute_cap"
MORE = "memory.total,clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem,power.draw,power.limit,temperature.gpu,persistence_mode,mig.mode.current"
SAMPLED = "clocks.sm,clocks.mem,power.draw,temperature.gpu"


class NoGpu(Exception):
    """Why there is none."""


def find_smi():
    for name in ("nvidia-smi", "/usr/bin/nvidia-smi", "/usr/local/nvidia/bin/nvidia-smi"):
        if shutil.which(name):
            return shutil.which(name)
    raise NoGpu("no GPU: nvidia-smi was not found")


def parse_smi(text, names):
    """The first device's line of an answer in CSV."""
    rows = [line for line in text.splitlines() if line.strip()]
    values = [v.strip() for v in rows[0].split(",")] if rows else []
    if len(values) != len(names.split(",")):
        raise NoGpu(f"no GPU: nvidia-smi's answer is not understood: {text.strip()[:200]}")
    return dict(zip(names.split(","), values))


def ask_smi(names):
    try:
        done = subprocess.run([find_smi(), f"--query-gpu={names}", "--format=csv,noheader"], capture_output=True, text=True, timeout=60)
    except subprocess.TimeoutExpired:
        raise NoGpu("no GPU: nvidia-smi does not answer") from None
    if done.returncode != 0:
        raise NoGpu("no GPU: nvidia-smi says " + ((done.stdout + done.stderr).strip().splitlines() or ["nothing"])[-1])
    return parse_smi(done.stdout, names)


def gpu():
    """What nvidia-smi says of the first device, its clocks of now among it, as far as it knows them."""
    found = ask_smi(SMI)
    try:
        found.update(ask_smi(MORE))
    except NoGpu as e:
        found["more"] = str(e)
    return found


def spread(text):
    """Of lines of SAMPLED without units: {field: [lowest, median, highest]}."""
    columns = {}
    for line in text.splitlines():
        for name, value in zip(SAMPLED.split(","), line.split(",")):
            try:
                columns.setdefault(name, []).append(float(value))
            except ValueError:
                continue
    return {name: [min(v), statistics.median(v), max(v)] for name, v in columns.items()}


@contextlib.contextmanager
def clocks(into):
    """Clocks, power and temperature while something runs, every half second."""
    with tempfile.TemporaryFile("w+") as out:
        smi = subprocess.Popen([find_smi(), f"--query-gpu={SAMPLED}", "--format=csv,noheader,nounits", "-i", "0", "-lms", "500"],
                               stdout=out, stderr=subprocess.DEVNULL)
        try:
            yield
        finally:
            smi.terminate()
            smi.wait()
            out.seek(0)
            into.update(spread(out.read()))


def parse(text):
    """Lines that are objects of JSON with a kind."""
    lines = []
    for line in text.splitlines():
        if line.startswith("{"):
            try:
                found = json.loads(line)
            except ValueError:
                continue
            if "kind" in found:
                lines.append(found)
    return lines


def run(command, seconds=SECONDS, env=None):
    """(lines, why it failed or None)"""
    try:
        done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=seconds, env=env)
    except subprocess.TimeoutExpired as e:
        return parse((e.stdout or b"").decode()), f"{command[1]}: not done after {seconds} s"
    if done.returncode == 0:
        return parse(done.stdout), None
    said = (done.stderr.strip() or done.stdout.strip() or f"exit status {done.returncode}").splitlines()[-1]
    return parse(done.stdout), f"{command[1]}: {said}"


def commands(binary, quick):
    shapes = figures.shapes(quick)
    peer = [sys.executable, str(build.HERE / "triton_moe.py"), *shapes]
    return {"limits": [binary, "limits"],
            "ffn_bf16": [binary, "ffn", "bf16", *shapes], "ffn_e4m3": [binary, "ffn", "e4m3", *shapes],
            "triton": peer, "mla": [binary, "mla"], "decode": [binary, "decode", "1", "64"],
            "frame_bf16": [binary, "frame", "bf16"], "frame_e4m3": [binary, "frame", "e4m3"]}


def measure(binary, names, quick, say=print):
    """(lines, reasons) of the programs that figures of these names need."""
    library = os.environ.get("SWITCHYARD_CUBLASLT") or build.cublas()
    env = {**os.environ, "SWITCHYARD_CUBLASLT": str(library or "")}
    needed = {p for name in names for p in figures.FIGURES[name].needs}
    lines, reasons = [], {}
    for program, command in commands(binary, quick).items():
        if program not in needed:
            continue
        say(f"measuring {program}")
        meanwhile = {}
        with clocks(meanwhile):
            found, why = run(command, env=env)
        lines += [*found, {"kind": "clocks", "program": program, **meanwhile}]
        if why is not None:
            reasons[program] = why
            say(f"  {why}")
    return lines, reasons
