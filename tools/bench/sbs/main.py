# SPDX-License-Identifier: Apache-2.0
"""The command line of tools/bench/side_by_side."""
import argparse
import datetime
import os
import pathlib
import signal
import sys
import time

from . import figures, machine, models, parts, peer, report
from .processes import MeasureError, Processes
from .servers import Ours, Theirs

ROOT = pathlib.Path(__file__).resolve().parents[3]
PROGRAMS = ("switchyard", "switchyard-router", "switchyard-expert-worker", "switchyard-gateway", "machine_bench", "dispatch_bench")
# Name for --only, figures, seconds that a quick run of it takes (for the time left), and what does it.
PARTS = ("decode1", "prefill", "decode16", "decode32", "clients32", "rss", "load", "cluster", "wire", "step_overhead", "crowded")
LIMITS = {True: 560, False: 3500}  # seconds, by --quick; what is begun is ended


def parser():
    ap = argparse.ArgumentParser(
        prog="side_by_side", description="Switchyard and llama.cpp side by side: the same weights, types, cores and threads, in turn.",
        epilog="First, once: side_by_side --build-peer --make-models; cmake --preset release && cmake --build --preset release. "
               "Then: side_by_side --quick --json build/side_by_side.json")
    ap.add_argument("--json", type=pathlib.Path, help="where the figures and all samples go; - is standard output")
    ap.add_argument("--quick", action="store_true", help="few repetitions: at most 10 minutes instead of 60")
    ap.add_argument("--only", type=lambda s: s.split(","), default=list(PARTS), metavar="PART,PART", help=f"of {', '.join(PARTS)}")
    ap.add_argument("--types", type=lambda s: s.split(","), default=list(models.TYPES), metavar="TYPE,TYPE",
                    help=f"of {', '.join(models.TYPES)}, for decode1 and prefill")
    ap.add_argument("--cores", type=cores_of, default=sorted(os.sched_getaffinity(0)), metavar="N,N-N",
                    help="all processes run on these; one thread each (default: all)")
    ap.add_argument("--bin", type=pathlib.Path, default=ROOT / "build/release/bin", help="our programs (default: build/release/bin)")
    ap.add_argument("--dir", type=pathlib.Path, default=ROOT / "build/bench", help="where models/ and peer/ lie (default: build/bench)")
    ap.add_argument("--build-peer", action="store_true", help="download and build llama.cpp into DIR/peer, and end")
    ap.add_argument("--make-models", action="store_true", help="make the models in DIR/models (20 GB), and end; wants the peer")
    ap.add_argument("--jobs", type=int, default=os.cpu_count(), help="of the peer's build")
    return ap


def cores_of(text):
    """[0, 2, 3] of "0,2-3"."""
    out = set()
    try:
        for piece in text.split(","):
            first, _, last = piece.partition("-")
            out.update(range(int(first), int(last or first) + 1))
    except ValueError:
        raise argparse.ArgumentTypeError(f'"{text}" is no list of cores such as 0,2-3') from None
    return sorted(out)


def steps(b, only, types):
    """(title, figures, seconds of a quick run, what to do) of what was asked for."""
    wanted = set(only)
    single = wanted & {"decode1", "prefill"}
    for kind in types if single else ():
        yield f"one stream and prefill, {kind}", [], 85, lambda kind=kind: parts.one_stream(b, kind, single)
    for names, seconds, prefixes, body in (
            (("decode16", "decode32"), 80, ("decode16_", "decode32_"), parts.many_streams),
            (("clients32", "rss"), 100, ("clients32_", "rss_"), parts.clients), (("load",), 30, ("load_",), parts.load),
            (("cluster",), 75, ("cluster",), parts.cluster), (("wire",), 10, ("wire_",), parts.wire),
            (("step_overhead",), 20, ("step_",), parts.step_overhead), (("crowded",), 30, ("crowded_",), parts.crowded)):
        if wanted & set(names):
            yield ", ".join(names), [f for f in figures.FIGURES if f.startswith(prefixes)], seconds, lambda body=body: body(b)


def run_steps(b, plan, limit):
    """Each part has its share of the `limit` in seconds; one that is slow takes fewer samples."""
    began, done = time.monotonic(), 0
    total = sum(seconds for _, _, seconds, _ in plan)
    for i, (title, names, seconds, body) in enumerate(plan, 1):
        passed = time.monotonic() - began
        left = passed / done * (total - done) if done else total
        print(f"[{i}/{len(plan)}] {title}; {passed:.0f} s passed, about {left:.0f} s left", flush=True)
        b.until = began + limit * (done + seconds) / total
        try:
            body()
        except MeasureError as error:
            print(f"  not measured: {error}", file=sys.stderr)
            b.missing([n for n in names if n not in b.results], str(error))
        b.processes.stop_all()
        done += seconds


def check(args, llama, store):
    """Raises with all that is missing and how to make it."""
    missing = [args.bin / p for p in PROGRAMS if not (args.bin / p).exists()]
    if missing:
        raise MeasureError(f"{', '.join(map(str, missing))} not there; cmake --preset release && cmake --build --preset release")
    if not llama.built():
        raise MeasureError(f"llama.cpp is not built in {llama.folder}; side_by_side --build-peer --dir {args.dir}")
    if absent := store.missing(models.TYPES):
        raise MeasureError(f"{', '.join(map(str, absent))} not there; side_by_side --make-models --dir {args.dir}")
    usable = os.sched_getaffinity(0)
    if not args.cores or not usable.issuperset(args.cores):
        raise MeasureError(f"--cores: this process may use {','.join(map(str, sorted(usable)))}, not {args.cores}")
    for what, given, known in (("--only", args.only, PARTS), ("--types", args.types, models.TYPES)):
        if unknown := set(given) - set(known):
            raise MeasureError(f"{what} {','.join(unknown)} is unknown; known are {', '.join(known)}")


def measure(args, llama, store):
    check(args, llama, store)
    os.sched_setaffinity(0, args.cores)
    threads, began = len(args.cores), time.time()
    with Processes(args.dir / "logs") as processes:
        b = parts.Bench(processes, Ours(processes, args.bin, threads), Theirs(processes, llama, threads), store, args.bin,
                        parts.QUICK if args.quick else parts.FULL, ROOT / "models/tiny-r1")
        b.measure_machine()
        try:
            run_steps(b, list(steps(b, args.only, args.types)), LIMITS[args.quick])
        finally:  # also of a run that is cut short
            print(report.table(b.results))
            if args.json:
                report.write(args.json, {
                    "at": datetime.datetime.fromtimestamp(began).astimezone().isoformat(timespec="seconds"),
                    "seconds": round(time.time() - began), "quick": args.quick, "machine": machine.describe(args.cores),
                    "threads": threads, "commit": machine.commit(), "peer": llama.version(), "measured": b.caps, "figures": b.results})


def interrupt(*_):
    raise KeyboardInterrupt


def main():
    args = parser().parse_args()
    signal.signal(signal.SIGTERM, interrupt)
    llama, store = peer.Peer(args.dir / "peer"), models.Models(args.dir / "models")
    try:
        if args.build_peer:
            llama.build(args.jobs)
        if args.make_models:
            store.make(llama)
        if not args.build_peer and not args.make_models:
            measure(args, llama, store)
    except (peer.PeerError, MeasureError) as error:
        print(f"side_by_side: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("side_by_side: interrupted; every process it started has ended", file=sys.stderr)
        return 130
    return 0
