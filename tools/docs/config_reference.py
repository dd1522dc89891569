#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes the tables of docs/reference/configuration.md from the config protos: python3 tools/docs/config_reference.py

The protos are what flags, variables and keys are made of (services/config/load.h), so the tables cannot differ from
--help. The tidy test fails where the page is not what this gives.
"""
import pathlib
import re

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
PAGE = "docs/reference/configuration.md"
PROTOS = "protos/switchyard/config/v1"
PROGRAMS = {"ServeConfig": "S", "GatewayConfig": "G", "RouterConfig": "R", "WorkerConfig": "W"}
BEGIN, END = "<!-- tables: tools/docs/config_reference.py -->", "<!-- end of tables -->"


def messages():
    """name → (group, fields); a field is (type, name, options) with options None where it is a message."""
    text = "\n".join(p.read_text() for p in sorted((ROOT / PROTOS).glob("*.proto")) if p.name != "options.proto")
    out = {}
    for name, body in re.findall(r"^message (\w+) \{\n(.*?)^\}", text, re.M | re.S):
        group = re.search(r'option \(group\) = "([^"]*)"', body)[1]
        fields = re.findall(r"^  (?:(?:optional|repeated) )?(\w+) (\w+) = \d+(?: \[\(knob\) = \{(.*?)\}\])?;", body, re.M | re.S)
        out[name] = (group, fields)
    return out


def option(options, name, fallback=""):
    found = re.search(name + r': (?:"([^"]*)"|(\w+))', options)
    return (found[1] or found[2] or "") if found else fallback


def meaning(kind, name, options):
    text = option(options, "help")
    if name == "expert_metrics":
        return text
    choices = re.search(r"choices: \[(.*?)\]", options, re.S)
    if choices:
        text += ": " + ", ".join(f"`{c}`" for c in re.findall(r'"([^"]*)"', choices[1]))
    if kind == "int32":
        text += f" ({int(option(options, 'min', '0')):,} to {int(option(options, 'max')):,})"
    return text


def tables():
    all_messages = messages()
    knobs = {}  # (key, options) → [group, kind, letters]: programs differ in the defaults of some keys

    def collect(message, letter):
        group, fields = all_messages[message]
        for kind, name, options in fields:
            if kind in all_messages:
                collect(kind, letter)
            else:
                knobs.setdefault((name, options), [group, kind, []])[2].append(letter)

    for message, letter in PROGRAMS.items():
        collect(message, letter)
    first = {}
    for key in knobs:
        first.setdefault(key[0], key)
    lines = []
    for group in dict.fromkeys(k[0] for k in knobs.values()):
        lines += [f"### {group}", "", "| flag | variable | key | default | of | meaning |", "| --- | --- | --- | --- | --- | --- |"]
        for (name, options), (of_group, kind, letters) in sorted(knobs.items(), key=lambda k: list(knobs).index(first[k[0][0]])):
            if of_group != group:
                continue
            fallback = option(options, "fallback")
            instead = option(options, "instead")
            required = "required" + (f" without `--{instead.replace('_', '-')}`" if instead else "")
            default = required if "required: true" in options else f"`{fallback}`" if fallback else "–"
            flag = "--" + name.replace("_", "-")
            value = option(options, "value_name") or {"int32": "N", "bool": ""}.get(kind, "ADDR" if "ADDRESS" in options else "NAME")
            lines.append(f"| `{(flag + ' ' + value).strip()}` | `SWITCHYARD_{name.upper()}` | `{name}` | {default} | "
                         f"{''.join(letters)} | {meaning(kind, name, options).replace('|', '/')} |")
        lines.append("")
    return "\n".join(lines)


def page_as_it_should_be():
    text = (ROOT / PAGE).read_text()
    head, rest = text.split(BEGIN)
    return head + BEGIN + "\n\n" + tables() + "\n" + END + rest.split(END)[1]


if __name__ == "__main__":
    (ROOT / PAGE).write_text(page_as_it_should_be())
