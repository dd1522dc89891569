# SPDX-License-Identifier: Apache-2.0
"""Figures out of records. Pure."""
import math
import statistics


def percentile(values, share):
    """Nearest rank; None of nothing."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else None


def gaps(records, *windows):
    """Seconds between two tokens of a choice, of all such waits that reach into one of the windows: whoever stands still throughout is seen."""
    return [b - a for r in records for since, until in windows if r.began < until and r.ended_or(until) > since
            for c in r.choices.values() for a, b in zip(c.times, c.times[1:]) if b > since and a < until]


def silences(record):
    """(since, until) of every wait of its client: for the first token, between two of a choice, and for what never came."""
    for choice in record.choices.values():
        yield from zip(choice.times, choice.times[1:])
    firsts = [c.times[0] for c in record.choices.values() if c.times]
    if firsts:
        yield record.began, min(firsts)
    if record.ended and not record.ok and not record.cancelled and not record.shed:
        yield max([record.began, *(c.times[-1] for c in record.choices.values() if c.times)]), record.ended


def stalls(records, fault, until, whole=False):
    """The longest silence of each stream, of those that reach into the window, or (whole) lie in it; a stream is one slot's requests, one
    after the other."""
    longest = {}
    for r in records:
        if r.began < until and r.ended_or(until) > fault:
            reach = [b - a for a, b in silences(r) if (fault <= a and b <= until if whole else b > fault and a < until)]
            longest[r.slot] = max(longest.get(r.slot, 0.0), *reach, 0.0)
    return list(longest.values())


def first_tokens(records, since, until):
    """Seconds from a request to its first token, of requests begun within the window."""
    return [min(c.times[0] for c in r.choices.values() if c.times) - r.began
            for r in records if since < r.began <= until and any(c.times for c in r.choices.values())]


def tokens_per_second(records, since, until):
    """Of all choices, whatever became of their requests."""
    count = sum(1 for r in records for c in r.choices.values() for t in c.times if since < t <= until)
    return count / (until - since)


def changed(record, reference):
    """Whether anything was said that the reference does not say; of one that did not finish, as far as it came."""
    if record.ok:
        return record.said() != reference
    for index, choice in record.choices.items():
        text, tokens, _ = choice.said()
        wanted_text, wanted_tokens, _ = reference[index]
        if wanted_tokens[:len(tokens)] != tokens or not wanted_text.startswith(text):
            return True
    return False


def ms(seconds):
    return None if seconds is None else round(seconds * 1e3, 2)


WORST = ("failed", "tokens_changed", "hung", "answers_503", "bad_exits", "counter_errors", "shed_without_retry_after")


def combine(rows):
    """One row of several runs: medians, but the worst of what may not happen at all."""
    first, whole = rows[0], {}
    for key in dict.fromkeys(k for row in rows for k in row):
        values = [row[key] for row in rows if row.get(key) is not None]
        if key == "bounds":
            whole[key] = {field: [kind, statistics.median(b[field][1] for b in values if field in b)]
                          for field, (kind, _) in {f: v for b in values for f, v in b.items()}.items()}
        elif key in WORST:
            whole[key] = max(values, default=None)
        elif key == "requests":
            whole[key] = sum(values)
        elif values and all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values):
            whole[key] = statistics.median(values)
        else:
            whole[key] = first.get(key) if first.get(key) is not None else (values or [None])[0]
    errors = [row["error"] for row in rows if row.get("error")]
    if errors:
        whole["error"] = errors[0]
    whole["runs"] = len(rows)
    return judge(whole)


def judge(row):
    """Adds `misses` and `pass`: each bound is [\"<=\" or \">=\", number]; a figure that is missing misses its bound."""
    misses = [row["error"]] if row.get("error") else []
    for field, (kind, bound) in row.get("bounds", {}).items():
        value = row.get(field)
        if value is None or (value > bound if kind == "<=" else value < bound):
            misses.append(f"{field} is {value}, must be {kind} {bound:g}")
    row["misses"], row["pass"] = misses, not misses
    return row
