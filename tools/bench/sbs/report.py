# SPDX-License-Identifier: Apache-2.0
"""What is written and shown at the end."""
import json

from .figures import FIGURES


def number(value):
    if value is None:
        return "-"
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def rows(results):
    """Name, value, best, target, reached, and why where there is no value."""
    for name, figure in FIGURES.items():
        if (r := results.get(name)) is None:
            continue
        best = r.get("best", r.get("best_ratio"))
        sign = "<=" if figure.at_most else ">="
        state = {True: "yes", False: "no", None: "-"}[r["reached"]]
        yield name, number(r["value"]), number(best), f"{sign} {figure.target:g}", state, sides(r) if r["value"] is not None else r["reason"]


def sides(r):
    """The best sample of each side, as far as a figure has two."""
    pairs = [("ours", "theirs"), ("cluster", "embedded"), ("crowded", "quiet")]
    best = min if r["at_most"] else max
    for a, b in pairs:
        if a in r and b in r:
            return f"{a} {number(best(r[a]))}, {b} {number(best(r[b]))} {r.get('unit', '')}, {r.get('type', '')}".rstrip(", ")
    return ""


def table(results):
    lines = [("figure", "value", "best", "target", "there", "")] + list(rows(results))
    widths = [max(len(line[i]) for line in lines) for i in range(5)]
    return "\n".join("  ".join([line[0].ljust(widths[0])] + [line[i].rjust(widths[i]) for i in range(1, 5)] + [line[5][:120]]).rstrip()
                     for line in lines)


def write(path, document):
    text = json.dumps(document, indent=1) + "\n"
    if str(path) == "-":
        print(text, end="")
    else:
        path.write_text(text)
