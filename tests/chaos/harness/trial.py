# SPDX-License-Identifier: Apache-2.0
"""One run of a scenario: a cluster under load, the moments of its faults, and the row that comes of it."""
import asyncio
import collections
import dataclasses
import json
import pathlib
import re
import time

from . import deck, measure
from .cluster import Cluster
from .load import Load

NONE_MAY = {"failed": ["<=", 0], "tokens_changed": ["<=", 0], "hung": ["<=", 0]}


@dataclasses.dataclass
class Options:
    """How much of everything; the defaults are the table's."""
    streams: int = 32
    kills: int = 20
    minutes: float = 10
    calm_seconds: float = 6  # before the first fault
    logs: pathlib.Path = pathlib.Path(".")


class References:
    """Asks the embedded server once for each deck, whatever many scenarios use it."""

    def __init__(self, options):
        self.options, self.known = options, {}

    async def of(self, **kind):
        key = json.dumps(kind, sort_keys=True)
        if key not in self.known:
            requests = deck.deck(2 * self.options.streams, **kind)
            self.known[key] = requests, await deck.references(requests, self.options.logs)
        return self.known[key]


class Trial:
    """`async with Trial(...)`: the cluster runs and so does the load; afterwards all has ended."""

    def __init__(self, name, shape, options, references, kind=None):
        self.name, self.options, self.references, self.kind = name, options, references, kind or {}
        self.shape = shape
        self.faults, self.calm = [], None  # (time, what); (since, until)
        self.ended = None

    async def __aenter__(self):
        self.requests, self.reference = await self.references.of(**self.kind)
        self.logs = self.options.logs / self.name
        self.logs.mkdir(parents=True, exist_ok=True)
        self.cluster = Cluster(self.shape, self.logs)
        await self.cluster.__aenter__()
        self.load = Load(self.requests, self.cluster.entrance)
        self.began, self.cpu = self.now, time.process_time()
        return self

    async def __aexit__(self, *_):
        await self.load.cancel()
        self.cluster.close()

    @property
    def now(self):
        return self.load.now()

    async def undisturbed(self, seconds=None):
        """Starts the load, and measures it while nothing happens."""
        self.load.start(self.options.streams)
        await asyncio.sleep(2)  # connections, first prompts
        since = self.now
        await asyncio.sleep(seconds or self.options.calm_seconds)
        self.calm = (since, self.now)

    def fault(self, what):
        self.faults.append((self.now, what))

    async def end(self):
        """What is open may finish; whoever has died by itself is named."""
        self.ended = self.now
        await self.load.stop()
        self.cluster.check_alive()

    def windows(self, of=""):
        """From each fault whose name begins so to the next."""
        times = [t for t, _ in self.faults] + [self.ended]
        return [(since, until) for since, until, (_, what) in zip(times, times[1:], self.faults) if what.startswith(of)]

    def failed(self, sheds_count=True):
        return [r for r in self.load.records if not r.ok and not r.cancelled and (sheds_count or not r.shed)]

    def p99_ms(self, windows):
        """Of the time between two tokens."""
        return measure.ms(measure.percentile(measure.gaps(self.load.records, *windows), 0.99))

    def undisturbed_p99_ms(self):
        return self.p99_ms([self.calm])

    def row(self, bounds, sheds_count=True, **more):
        """The figures of the run so far, judged."""
        records, failed = self.load.records, self.failed(sheds_count)
        disturbed = (self.faults[0][0], self.ended) if self.faults else self.calm
        longest = [s for window in self.windows() for s in measure.stalls(records, *window)]
        changed = [r for r in records if r.choices and measure.changed(r, self.reference[r.request])]
        lags = [lag for at, lag in self.load.lags if at > disturbed[0]]
        row = {
            "name": self.name, "requests": len(records), "failed": len(failed), "tokens_changed": len(changed),
            "stall_p99_ms": measure.ms(measure.percentile(longest, 0.99)),
            "undisturbed_p99_ms": self.undisturbed_p99_ms(),
            "stall_max_ms": measure.ms(max(longest, default=None)), "stall_median_ms": measure.ms(measure.percentile(longest, 0.5)),
            "undisturbed_stall_p99_ms": measure.ms(measure.percentile(measure.stalls(records, *self.calm, whole=True), 0.99)),
            "inter_token_p99_ms": self.p99_ms([disturbed]),
            "undisturbed_first_token_p99_ms": measure.ms(measure.percentile(measure.first_tokens(records, *self.calm), 0.99)),
            "first_token_p99_ms": measure.ms(measure.percentile(measure.first_tokens(records, *disturbed), 0.99)),
            "undisturbed_tokens_per_s": round(measure.tokens_per_second(records, *self.calm), 1),
            "tokens_per_s": round(measure.tokens_per_second(records, *disturbed), 1),
            "faults": len(self.faults), "hung": sum(r.hung for r in records), "answers_503": sum(r.status == 503 for r in records),
            "shed": sum(r.shed for r in records), "cancelled": sum(r.cancelled for r in records),
            "own_lag_max_ms": measure.ms(max(lags, default=None)), "own_cpu_share": round((time.process_time() - self.cpu) / (self.now - self.began), 3),
            "errors": self._errors(failed), "bounds": {**NONE_MAY, **bounds}, **more,
        }
        return measure.judge(row)

    def _errors(self, failed):
        """The commonest, with the time after the fault before them."""
        def since(r):
            before = [(t, what) for t, what in self.faults if t <= r.ended]
            return f"{before[-1][1]} + {r.ended - before[-1][0]:.1f} s" if before else "before any fault"

        texts = collections.defaultdict(list)
        for r in failed:
            text = re.sub(r"(position|choice) [0-9]+", r"\1 N", re.sub(r"[0-9a-f]{32}", "…", r.error))
            texts[f"HTTP {r.status}: {text[:240]}"].append(since(r))
        common = sorted(texts.items(), key=lambda item: -len(item[1]))[:5]
        return [{"times": len(when), "error": text, "when": sorted(set(when))[:4]} for text, when in common]
