# SPDX-License-Identifier: Apache-2.0
"""What is written and shown at the end."""
import json


def number(value):
    return "-" if value is None else f"{value:.3g}"


def shown(entry):
    if entry["value"] is None:
        return entry["reason"]
    return ", ".join(f"{name}: {number(value)}" for name, value in entry["shapes"].items())


def table(figures):
    lines = [("figure", "value", "must reach", "there", "")]
    for name, entry in figures.items():
        sign = "<=" if entry["at_most"] else ">="
        there = {True: "yes", False: "no", None: "-"}[entry["reached"]]
        lines.append((name, number(entry["value"]), f"{sign} {entry['target']:g}", there, shown(entry)[:140]))
    widths = [max(len(line[i]) for line in lines) for i in range(4)]
    return "\n".join("  ".join([line[0].ljust(widths[0])] + [line[i].rjust(widths[i]) for i in range(1, 4)] + [line[4]]).rstrip() for line in lines)


def missed(figures):
    return [name for name, entry in figures.items() if entry["reached"] is not True]


def write(path, document):
    text = json.dumps(document, indent=1) + "\n"
    if str(path) == "-":
        print(text, end="")
    else:
        path.write_text(text)
