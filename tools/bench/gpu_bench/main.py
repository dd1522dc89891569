# SPDX-License-Identifier: Apache-2.0
"""The command line of tools/bench/gpu."""
import argparse
import datetime
import functools
import os
import pathlib
import shutil
import subprocess
import sys

from . import build, figures, programs, report

EXAMPLES = """\
examples:
  tools/bench/gpu --test                      hold the kernels against float64 on this machine's GPU; first thing to run
  tools/bench/gpu --test --sanitize           the same, few shapes, under compute-sanitizer's memcheck, racecheck, synccheck
  tools/bench/gpu --json out.json             measure all figures
  tools/bench/gpu --json out.json --check     the same, exit status 1 where one is missed or was not measured
  tools/bench/gpu --only mla,frame --quick    some of them, with few shapes
  tools/bench/gpu --build-only --arch sm_90a  compile on a machine without a GPU

Needs the CUDA toolkit, a driver and a C++ compiler. Where this Python has PyTorch and Triton, the peer is measured too.
"""
SANITIZERS = ("memcheck", "racecheck", "synccheck")


def parser():
    ap = argparse.ArgumentParser(prog="gpu", description="Figures and checks of the CUDA plugin's kernels on this machine's first GPU.",
                                 formatter_class=argparse.RawDescriptionHelpFormatter, epilog=EXAMPLES)
    ap.add_argument("--json", type=pathlib.Path, metavar="OUT", help="where figures and samples go; - is standard output")
    ap.add_argument("--check", action="store_true", help="exit status 1 where a figure misses what it must reach, or was not measured")
    ap.add_argument("--only", type=lambda s: s.split(","), default=[""], metavar="PART,PART",
                    help="figures whose names have one of these parts; with --test: cases whose names have all of it")
    ap.add_argument("--quick", action="store_true", help="few shapes")
    ap.add_argument("--test", action="store_true", help="check results instead of measuring")
    ap.add_argument("--sanitize", action="store_true", help="with --test: under compute-sanitizer, few shapes")
    ap.add_argument("--plugin", type=pathlib.Path, metavar="FILE", help="with --test: this libswitchyard_cuda.so instead of one that is built here")
    ap.add_argument("--build-only", action="store_true", help="compile all of it, and end")
    ap.add_argument("--arch", choices=("sm_80", "sm_90a", "sm_100"), help="what to compile for (default: this machine's GPU)")
    ap.add_argument("--build-dir", type=pathlib.Path, default=build.ROOT / "build/gpu", help="default: build/gpu")
    ap.add_argument("--jobs", type=int, default=os.cpu_count(), help="compilers at a time")
    return ap


def chosen(parts):
    names = [name for name in figures.FIGURES if any(part in name for part in parts)]
    if not names:
        raise SystemExit(f"gpu: no figure is named like {','.join(parts)}; there are {', '.join(figures.FIGURES)}")
    return names


def commit():
    done = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=build.ROOT, capture_output=True, text=True) if shutil.which("git") else None
    return done.stdout.strip() or None if done else None


def builder(args, arch, say):
    return build.Builder(args.build_dir / arch, arch, args.jobs, say)


def build_only(args, say):
    b = builder(args, args.arch or build.arch_of(programs.gpu()["compute_cap"]), say)
    for made in (b.programs(), b.plugin(), b.checker()):
        say(made)
    return 0


def sanitizer():
    beside = build.find_nvcc().resolve().parents[1]
    for name in (shutil.which("compute-sanitizer"), beside / "bin/compute-sanitizer", beside / "compute-sanitizer/compute-sanitizer"):
        if name and pathlib.Path(name).exists():
            return str(name)
    raise build.BuildError("compute-sanitizer was not found; it comes with the CUDA toolkit")


def test(args, say):
    plugin, b = args.plugin, None
    if plugin is None:
        b = builder(args, args.arch or build.arch_of(programs.gpu()["compute_cap"]), say)
        plugin = b.plugin()
    checker = (b or builder(args, "host", say)).checker()
    command = [checker, plugin.resolve(), "--only", ",".join(args.only), *(["--quick"] if args.quick or args.sanitize else [])]
    runs = [[sanitizer(), "--tool", tool, "--error-exitcode", "99"] for tool in SANITIZERS] if args.sanitize else [[]]
    status = 0
    for before in runs:
        if before:
            say(f"compute-sanitizer {' '.join(before[1:3])}")
        status = max(status, abs(subprocess.run([*before, *command]).returncode))
    say("passed" if status == 0 else f"failed (status {status})")
    return status


def measure(args, say):
    names = chosen(args.only)
    document = {"tool": "tools/bench/gpu", "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
                "commit": commit(), "quick": args.quick, "device": None, "driver": None, "toolkit": None, "clocks": None,
                "conditions": "clocks, power and persistence as found, nothing is locked; medians over repetitions after warm-up, "
                              "with the L2 cache filled with other data before each"}
    lines, reasons = [], {}
    try:
        before = programs.gpu()
        arch = args.arch or build.arch_of(before["compute_cap"])
        document.update(device=before["name"], driver=before["driver_version"], arch=arch, toolkit=toolkit())
        binary = builder(args, arch, say).programs()
        lines, reasons = programs.measure(binary, names, args.quick, say)
        document["clocks"] = {"before": before, "after": programs.gpu()}
    except (programs.NoGpu, build.BuildError) as e:
        say(e)
        why = str(e).splitlines()[0]
        reasons = {p: reasons.get(p, why) for f in figures.FIGURES.values() for p in f.needs}
    document.update(figures=figures.results(names, lines, reasons), samples=lines)
    if args.json is not None:
        report.write(args.json, document)
    say(report.table(document["figures"]))
    missed = report.missed(document["figures"])
    if args.check and missed:
        say(f"missed or not measured: {', '.join(missed)}")
        return 1
    return 0


def toolkit():
    return subprocess.run([build.find_nvcc(), "--version"], capture_output=True, text=True).stdout.strip().splitlines()[-1]


def main(words=None):
    args = parser().parse_args(words)
    if (args.sanitize or args.plugin) and not args.test:
        raise SystemExit("gpu: --sanitize and --plugin go with --test")
    say = functools.partial(print, file=sys.stderr, flush=True)  # standard output may be the JSON
    try:
        return (build_only if args.build_only else test if args.test else measure)(args, say)
    except (programs.NoGpu, build.BuildError) as e:
        say(f"gpu: {e}")
        return 1
