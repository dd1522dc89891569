# SPDX-License-Identifier: Apache-2.0
"""Breaks clusters of real processes under load, and measures what their clients see.

  tests/chaos/run --json rows.json                      the whole table, five runs each: about two hours
  tests/chaos/run --quick --json rows.json              one run each, two minutes of random kills
  tests/chaos/run --only kill_router --only migrate --json -
  tests/chaos/run --only sigstop_worker --quick --streams 8 --json -
  tests/chaos/run --list

Each scenario starts gateways, routers and workers of models/tiny-r1 on free ports of this machine, keeps streams open
through the gateway, and compares every token with what an embedded server says to the same requests. The row has
`pass`, and `misses` with what was not as it must be. The programs come from build/release/bin or $SWITCHYARD_BIN_DIR.
Ends with 1 if a row did not pass. Logs are kept, and named, where that is so.
"""
import argparse
import asyncio
import gc
import json
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

from . import measure, overload, scenarios, trouble
from .processes import BIN, Failure
from .trial import Options, References, Trial

TABLE = {f.__name__: f for f in (
    scenarios.kill_worker_replica, scenarios.kill_worker_orphan, scenarios.partition_worker, scenarios.kill_router, scenarios.sigstop_router,
    scenarios.rolling_restart, scenarios.sigstop_worker, scenarios.slow_link, scenarios.slow_link_lone, scenarios.migrate,
    trouble.corrupt_shard, trouble.clock_jump, trouble.memory_pressure, overload.random_kills, overload.overload)}
PROGRAMS = ("switchyard", "switchyard-gateway", "switchyard-router", "switchyard-expert-worker")
LIMIT_SECONDS = 600  # of a run of a scenario, beside the minutes of random kills


class Run:
    """What scenarios are given."""

    def __init__(self, options, references):
        self.options, self.references = options, references

    def trial(self, name, shape, kind=None):
        return Trial(name, shape, self.options, self.references, kind)


async def run_once(name, options, references):
    """A row, whatever happens but Ctrl-C."""
    gc.collect()
    try:
        return await asyncio.wait_for(TABLE[name](Run(options, references)), LIMIT_SECONDS + 60 * options.minutes)
    except asyncio.TimeoutError:
        error = f"not done after {LIMIT_SECONDS + 60 * options.minutes:g} s"
    except (Failure, RuntimeError, OSError) as e:
        error = f"{type(e).__name__}: {e}" if not isinstance(e, Failure) else str(e)
    return measure.judge({"name": name, "requests": 0, "failed": None, "tokens_changed": None, "stall_p99_ms": None,
                          "undisturbed_p99_ms": None, "error": error})


def show(row, stream=sys.stderr):
    figures = (("requests", ""), ("failed", ""), ("tokens_changed", ""), ("stall_p99_ms", " ms"), ("undisturbed_p99_ms", " ms"))
    text = ", ".join(f"{key} {row[key]}{unit}" for key, unit in figures if row.get(key) is not None)
    print(f"{'passed' if row['pass'] else 'FAILED'} {row['name']}: {text}; {row.get('seconds', 0):g} s a run", file=stream)
    for miss in row["misses"]:
        print(f"    {miss}", file=stream)
    for error in row.get("errors") or []:
        print(f"    {error['times']} × {error['error']} ({'; '.join(error['when'])})", file=stream)
    stream.flush()


def write(rows, out, of):
    """All rows so far: a table of hours that ends early still has them."""
    text = json.dumps([{**row, "commit": of} for row in rows], indent=1, ensure_ascii=False) + "\n"
    if out == "-":
        sys.stdout.write(text)
    elif out:
        pathlib.Path(out).write_text(text)


async def run_all(names, runs, options, on_row):
    rows, references = [], References(options)
    gc.disable()  # a collection of many records would look like a stall; they are collected between runs
    for name in names:
        of_runs = []
        for i in range(runs):
            print(f"{name}, run {i + 1} of {runs}", file=sys.stderr, flush=True)
            began = time.monotonic()
            row = await run_once(name, options, references)
            row["seconds"] = round(time.monotonic() - began, 1)
            of_runs.append(row)
            if runs > 1:
                show(row)
            if row.get("error") and row["requests"] == 0:
                break  # it cannot even begin; once more says no more
        rows.append(measure.combine(of_runs))
        show(rows[-1])
        on_row(rows)
    return rows


def parse(argv):
    ap = argparse.ArgumentParser(prog="tests/chaos/run", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--json", metavar="OUT", help="file that the rows go to, each as it comes; - is standard output, at the end")
    ap.add_argument("--quick", action="store_true", help="one run instead of five, two minutes of random kills instead of ten")
    ap.add_argument("--only", metavar="NAME", action="append", choices=TABLE, help="this scenario; may be given several times")
    ap.add_argument("--list", action="store_true", help="name the scenarios")
    ap.add_argument("--runs", type=int, help="runs of each scenario")
    ap.add_argument("--streams", type=int, default=Options.streams, help="open streams (%(default)s)")
    ap.add_argument("--kills", type=int, default=Options.kills, help="kills of a run (%(default)s)")
    ap.add_argument("--minutes", type=float, help="of random kills")
    ap.add_argument("--calm-seconds", type=float, default=Options.calm_seconds, help="undisturbed, before the first fault (%(default)s)")
    ap.add_argument("--logs", type=pathlib.Path, help="folder for the logs, which are then kept in any case")
    args = ap.parse_args(argv)
    if min(args.streams, args.kills, 1 if args.runs is None else args.runs) < 1:
        ap.error("--streams, --kills and --runs are at least 1")
    return args


def commit():
    """Of the programs that ran, as they say."""
    out = subprocess.run([BIN / "switchyard", "version"], capture_output=True, text=True, timeout=20)
    return m[1] if (m := re.search(r"\b([0-9a-f]{7,40}(?:-dirty)?)\b", out.stdout)) else "unknown"


async def _until_signal(work):
    """SIGTERM ends it as Ctrl-C does, so that no process stays behind."""
    task = asyncio.ensure_future(work)
    for which in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(which, task.cancel)
    return await task


def main(argv=None):
    args = parse(argv)
    if args.list:
        for name, function in TABLE.items():
            print(f"{name:22} {' '.join(function.__doc__.split())}")
        return 0
    missing = [p for p in PROGRAMS if not (BIN / p).exists()]
    if missing:
        print(f"{BIN} has no {', '.join(missing)}: build them, or set SWITCHYARD_BIN_DIR", file=sys.stderr)
        return 2
    logs = args.logs or pathlib.Path(tempfile.mkdtemp(prefix="switchyard-chaos-"))
    logs.mkdir(parents=True, exist_ok=True)
    options = Options(streams=args.streams, kills=args.kills, minutes=args.minutes or (2 if args.quick else 10), calm_seconds=args.calm_seconds, logs=logs)
    of = commit()
    on_row = (lambda rows: None) if args.json == "-" else (lambda rows: write(rows, args.json, of))
    try:
        rows = asyncio.run(_until_signal(run_all(args.only or list(TABLE), args.runs or (1 if args.quick else 5), options, on_row)))
    except (asyncio.CancelledError, KeyboardInterrupt):
        print(f"interrupted; logs are in {logs}", file=sys.stderr)
        return 130
    if args.json == "-":
        write(rows, "-", of)
    passed = all(row["pass"] for row in rows)
    if not passed:
        print(f"logs are in {logs}", file=sys.stderr)
    elif not args.logs:
        shutil.rmtree(logs, ignore_errors=True)
    return 0 if passed else 1
