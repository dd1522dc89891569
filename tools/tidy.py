#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The checks that keep the tree in shape, as one test: python3 tools/tidy.py [--fix]

Include arrows, format, lengths of files and functions, sources that no target builds, metrics and knobs without a line
in the docs, relative links to nowhere, machine paths, unfinished marks. --fix formats what clang-format would change.
"""
import argparse
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent

# Who may include whom: a folder's own files always; otherwise what stands in its row. First match wins.
PROTOS = ["switchyard/"]
FLOOR0 = ["services/base/"]
FLOOR1 = FLOOR0 + ["services/tensor/", "services/gguf/", "services/quantization/", "services/telemetry/", "services/config/", "services/security/"]
FLOOR2 = FLOOR1 + ["services/model/", "services/checkpoint/", "services/tokenizer/", "services/kernels/", "services/device/", "services/rpc/"]
SERVICES = FLOOR2 + ["services/expertwire/", "services/placement/", "services/discovery/"]
ROOMS = SERVICES + ["expert-worker/", "router/", "gateway/"]
ARROWS = [
    ("services/base/", []),
    ("services/tensor/", FLOOR0),
    ("services/gguf/", FLOOR0),
    ("services/quantization/", FLOOR0),
    ("services/telemetry/", FLOOR0 + PROTOS),
    ("services/config/", FLOOR0 + PROTOS),
    ("services/security/", FLOOR0 + PROTOS),
    ("services/model/", FLOOR1),
    ("services/checkpoint/", FLOOR1),
    ("services/tokenizer/", FLOOR1),
    ("services/kernels/", FLOOR1),
    ("services/device/", FLOOR1 + ["services/kernels/cuda/abi.h", "services/kernels/cuda/backbone_abi.h"]),
    ("services/rpc/", FLOOR1 + PROTOS),
    ("services/expertwire/", FLOOR2 + PROTOS),
    ("services/placement/", FLOOR2 + PROTOS),
    ("services/discovery/", FLOOR2 + PROTOS),
    ("expert-worker/", SERVICES + PROTOS),
    ("router/", SERVICES + PROTOS),
    ("gateway/", SERVICES + PROTOS),
    ("sdk/embedded/", ROOMS + PROTOS),
    ("tools/", ROOMS + PROTOS + ["sdk/embedded/", "tests/support/"]),
    ("tests/", ROOMS + PROTOS + ["sdk/embedded/", "tools/", "tests/"]),
]
# What may be tracked; any input stands in the corpora of the fuzzers.
ENDINGS = (".cc", ".h", ".cu", ".cuh", ".inc", ".in", ".proto", ".cmake", ".py", ".sh", ".md", ".txt", ".json", ".yaml", ".jinja", ".safetensors", ".xz", ".supp")
NAMES = ("LICENSE", "Dockerfile", ".gitignore", ".dockerignore", ".clang-format")
PROGRAMS = (".ci/run", "scripts/quickstart", "scripts/sysroot", "scripts/test", "tests/chaos/run", "tools/bench/gpu", "tools/bench/side_by_side")
# Where no wait may end by the wall clock, and the lines that ask for it to tell others.
PRODUCT = ("services/", "expert-worker/", "router/", "gateway/", "sdk/")
TOLD = r"ToUnixSeconds|ToChronoTime|FromChrono|Elapsed\(\)|^\s*//"
FUNCTION_LINES = 70
FILE_LINES = 800
# Old long functions may stay as long as they do not grow: "file:function line count".
RATCHET = {}

problems = []


def problem(path, line, text):
    problems.append(f"{path}:{line}: {text}" if line else f"{path}: {text}")


def tracked(*suffixes):
    out = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return [p for p in out.splitlines() if p.endswith(suffixes) and (ROOT / p).exists()]


def check_arrows(path, lines):
    row = next((r for r in ARROWS if path.startswith(r[0])), None)
    if row is None:
        return problem(path, 0, "stands in no room of tools/tidy.py's table")
    own = path.rsplit("/", 1)[0] + "/"
    for number, line in enumerate(lines, 1):
        m = re.match(r'#include "([^"]+)"', line)
        if not m or m[1].startswith((row[0], own)):
            continue
        if not any(m[1].startswith(a) for a in row[1]) and re.match(r"(services|router|gateway|expert-worker|sdk|tools|tests|switchyard)/", m[1]):
            problem(path, number, f"{row[0]} may not include {m[1]} (the arrows are in tools/tidy.py)")


def check_lengths(path, lines):
    if len(lines) > FILE_LINES:
        problem(path, 0, f"{len(lines)} lines; split it (limit {FILE_LINES})")
    start, indent, statement = None, 0, None  # statement: the line on which the one at hand begins
    for number, line in enumerate(lines, 1):
        code = re.sub(r"//.*", "", line).rstrip()
        if start is None:
            statement = statement or code
            m = re.match(r"( {0,2})(?!namespace|class|struct|enum|union|extern|\}|public|private|switch|using)\S", statement)
            if m and re.search(r"\) ?(const|noexcept|override|mutable|->.*|ABSL_\S+| )*\{$", code) and \
                    not re.match(r" *(if|for|while|switch|else|do)\b", statement):
                start, indent = number, len(m[1])
            if re.search(r"[;{}:]$|^\s*#|^$", code):
                statement = None
        elif re.match(" {%d}\\}" % indent, line):
            length = number - start - 1
            if length > RATCHET.get(f"{path}:{start}", FUNCTION_LINES):
                problem(path, start, f"function of {length} lines; split it (limit {FUNCTION_LINES})")
            start = None


def check_text(path, lines):
    for number, line in enumerate(lines, 1):
        if re.search(r"\b(TODO|FIXME|XXX)\b", line) and not re.search(r"TODO\(#\d+\)", line) and path != "tools/tidy.py":
            problem(path, number, "an unfinished mark without an issue number")
        if re.search(r'(?<![\w.])/(work|root)/', line) and path != "tools/tidy.py":
            problem(path, number, "a path of one machine")
        if path.startswith(PRODUCT) and re.search(r"AwaitWith|WaitWith|NotificationWith|absl::Now\b", line) and not re.search(TOLD, line):
            problem(path, number, "ends by the machine's clock, which may be set: services/base/clock.h")
    if path.endswith(".h") and "#pragma once" not in lines:
        problem(path, 0, "no #pragma once")


def check_endings():
    for path in tracked(""):
        if not (path.endswith(ENDINGS) or path.rsplit("/", 1)[-1] in NAMES or path in PROGRAMS or path.startswith("tests/fuzz/corpus/")):
            problem(path, 0, "a file of a kind that the tree does not have (tools/tidy.py: ENDINGS)")


def check_built(sources):
    lists = {p: (ROOT / p).read_text() for p in tracked("CMakeLists.txt")}
    for path in sources:
        if not path.endswith(".cc"):
            continue
        if not any(re.search(r"(?<![\w.-])" + re.escape(path[len(folder):]) + r"(?![\w.])", text)
                   for p, text in lists.items()
                   for folder in [p[: -len("CMakeLists.txt")]] if path.startswith(folder)):
            problem(path, 0, "no target builds it")


def check_metrics():
    names, docs = ROOT / "services/telemetry/names.h", ROOT / "docs/reference/metrics.md"
    if not names.exists():
        return
    text = docs.read_text() if docs.exists() else ""
    for name in re.findall(r'"(switchyard_\w+)"', names.read_text()):
        if name not in text:
            problem("docs/reference/metrics.md", 0, f"says nothing of {name}")


def check_knobs():
    sys.path.insert(0, str(ROOT / "tools/docs"))
    import config_reference
    if (ROOT / config_reference.PAGE).read_text() != config_reference.page_as_it_should_be():
        problem(config_reference.PAGE, 0, "differs from the config protos: python3 tools/docs/config_reference.py")


def headings(path):
    """The anchors that GitHub makes of a page's headings."""
    text = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.M | re.S)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in re.findall(r"^#+ (.*)$", text, re.M)}


def check_links(path, text):
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"\w+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (ROOT / path).parent / name if name else ROOT / path
        if not target.exists():
            problem(path, 0, f"links to {link}, which is not there")
        elif anchor and target.suffix == ".md" and anchor not in headings(target):
            problem(path, 0, f"links to {link}: {target.name} has no such heading")


def check_format(sources, fix):
    tool = "clang-format-14"
    if fix:
        subprocess.run([tool, "-i", *sources], cwd=ROOT, check=True)
    out = subprocess.run([tool, "--dry-run", *sources], cwd=ROOT, capture_output=True, text=True).stderr
    for path in sorted({line.split(":")[0] for line in out.splitlines() if "clang-format-violations" in line}):
        problem(path, 0, "not formatted: python3 tools/tidy.py --fix")


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--fix", action="store_true", help="format the sources")
    args = ap.parse_args()
    sources = tracked(".h", ".cc", ".cu", ".cuh")
    for path in sources:
        lines = (ROOT / path).read_text().split("\n")
        check_arrows(path, lines)
        check_lengths(path, lines)
        check_text(path, lines)
    for path in tracked(".py", ".sh", ".md", ".cmake", "CMakeLists.txt", ".proto"):
        check_text(path, (ROOT / path).read_text().split("\n"))
    size = sum((ROOT / p).stat().st_size for p in tracked("") if not (ROOT / p).is_symlink())
    if size > 50e6:
        problem(".", 0, f"tracked files are {size / 1e6:.1f} MB (limit 50)")
    check_endings()
    check_built(sources)
    check_metrics()
    check_knobs()
    for path in tracked(".md"):
        check_links(path, (ROOT / path).read_text())
    check_format(sources, args.fix)
    print("\n".join(problems) if problems else f"tidy: {len(sources)} sources, no problem")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
