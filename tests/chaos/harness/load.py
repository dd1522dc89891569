# SPDX-License-Identifier: Apache-2.0
"""Streaming requests over real HTTP, each token with the time of its arrival: one thread, one loop, raw bytes."""
import array
import asyncio
import dataclasses
import json
import random

from . import http

SILENCE_SECONDS = 20  # a stream that says nothing for so long counts as hung


@dataclasses.dataclass
class Choice:
    tokens: array.array = dataclasses.field(default_factory=lambda: array.array("i"))
    times: array.array = dataclasses.field(default_factory=lambda: array.array("d"))  # of chunks that brought tokens
    text: list = dataclasses.field(default_factory=list)
    finish: str | None = None

    def said(self):
        return "".join(self.text), self.tokens.tolist(), self.finish


@dataclasses.dataclass
class Record:
    """What became of one request."""
    request: int            # its place in the deck
    began: float
    slot: object = None     # whose requests come one after the other
    status: int = 0         # of HTTP; 0: no answer
    head: str = ""
    choices: dict = dataclasses.field(default_factory=dict)
    done: bool = False      # [DONE] came
    hung: bool = False
    cancelled: bool = False  # by ourselves
    error: str = ""
    ended: float = 0.0

    @property
    def ok(self):
        return self.done and not self.error and bool(self.choices) and all(c.finish in ("stop", "length") for c in self.choices.values())

    @property
    def shed(self):
        """Refused for load, before anything was said."""
        return self.status == 429

    @property
    def tokens(self):
        return sum(len(c.tokens) for c in self.choices.values())

    def ended_or(self, otherwise):
        """When it ended; of one that is still open what is given."""
        return self.ended or otherwise

    def said(self):
        return {i: c.said() for i, c in self.choices.items()}


class Exchange(asyncio.Protocol):
    """One request and its stream of events."""

    def __init__(self, data, record, now, cancel_after=None):
        self.data, self.record, self.now, self.cancel_after = data, record, now, cancel_after
        self.ended = asyncio.get_running_loop().create_future()
        self.rest, self.heard = b"", now()
        self.transport = None

    def connection_made(self, transport):
        self.transport = transport
        transport.write(self.data)

    def data_received(self, data):
        self.heard = self.now()
        self.rest += data
        if not self.record.status:
            head, found, self.rest = self.rest.partition(b"\r\n\r\n")
            if not found:
                self.rest = head
                return
            self.record.head = head.decode()
            self.record.status = int(head.split(None, 2)[1])
        if self.record.status == 200:
            *lines, self.rest = self.rest.split(b"\n")
            for line in lines:
                if line.startswith(b"data: "):
                    self._event(line[6:])

    def _event(self, data):
        if data == b"[DONE]":
            self.record.done = True
            return
        event = json.loads(data)
        if "error" in event:
            self.record.error = event["error"].get("message") or "an error without a message"
            return
        for said in event["choices"]:
            choice = self.record.choices.setdefault(said["index"], Choice())
            if ids := said.get("token_ids"):
                choice.tokens.extend(ids)
                choice.times.append(self.heard)
            choice.text.append(said["text"])
            choice.finish = said["finish_reason"] or choice.finish
            if said.get("error"):
                self.record.error = json.dumps(said["error"])
        if self.cancel_after is not None and self.record.tokens >= self.cancel_after:
            self.record.cancelled = True
            self.transport.abort()

    def connection_lost(self, error):
        record = self.record
        record.ended = self.now()
        if record.status not in (0, 200):
            record.error = self.rest.decode(errors="replace")[:500]
        elif not record.ok and not record.error and not record.cancelled:
            record.error = f"the stream ended early: {error or 'end of file'}" if record.status else f"no answer: {error or 'end of file'}"
        if not self.ended.done():
            self.ended.set_result(None)


class Load:
    """Closed loop: `streams` requests are always open. Open loop: Poisson arrivals at a rate, whatever becomes of them."""

    def __init__(self, deck, entrance, seed=1):
        self.bodies = [http.request("POST", "/v1/completions", body) for body in deck]
        self.entrance, self.chance = entrance, random.Random(seed)
        self.records, self.open, self.tasks = [], {}, set()
        self.running, self.next, self.cancel_share = False, 0, 0.0
        self.now = asyncio.get_running_loop().time
        self.lags = []  # (time, how late this loop woke up): what the script itself adds to a gap

    def start(self, streams):
        self._begin()
        for i in range(streams):
            self._spawn(self._slot(i, i / streams))

    def start_at_rate(self, per_second, most_open=4000):
        self._begin()
        self._spawn(self._arrivals(per_second, most_open))

    def _begin(self):
        self.running = True
        self._spawn(self._watch())

    def _spawn(self, coroutine):
        task = asyncio.ensure_future(coroutine)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def _slot(self, slot, delay):
        await asyncio.sleep(delay)  # not all in one step
        while self.running:
            record = await self._ask(slot)
            if record.status != 200:
                await asyncio.sleep(0.05)  # refused: not again at once

    async def _arrivals(self, per_second, most_open):
        due = self.now()
        while self.running:
            due += self.chance.expovariate(per_second)
            await asyncio.sleep(max(0, due - self.now()))
            if len(self.open) < most_open:
                self._spawn(self._ask())

    async def _ask(self, slot=None):
        request, self.next = self.next, (self.next + 1) % len(self.bodies)
        record = Record(request, self.now(), len(self.records) if slot is None else slot)
        self.records.append(record)
        cancel_after = self.chance.randrange(1, 60) if self.chance.random() < self.cancel_share else None
        try:
            _, exchange = await asyncio.get_running_loop().create_connection(
                lambda: Exchange(self.bodies[request], record, self.now, cancel_after), "127.0.0.1", self.entrance())
        except OSError as e:
            record.error, record.ended = f"no connection: {e}", self.now()
            return record
        self.open[id(record)] = exchange
        try:
            await exchange.ended
        finally:
            exchange.transport.abort()
            del self.open[id(record)]
        return record

    async def _watch(self):
        """Ends what has hung, and notes how late this loop is."""
        while self.running or self.open:
            asked = self.now()
            await asyncio.sleep(0.01)
            self.lags.append((asked, self.now() - asked - 0.01))
            for exchange in list(self.open.values()):
                if self.now() - exchange.heard > SILENCE_SECONDS:
                    exchange.record.hung = True
                    exchange.record.error = f"silent for {SILENCE_SECONDS} s"
                    exchange.transport.abort()

    async def stop(self, seconds=60):
        """No new requests; those that are open may finish."""
        self.running = False
        deadline = self.now() + seconds
        while self.tasks and self.now() < deadline:
            await asyncio.wait(list(self.tasks), timeout=0.1)
        for exchange in list(self.open.values()):
            exchange.record.hung = True
            exchange.record.error = f"not done {seconds} s after the end of the load"
        await self.cancel()

    async def cancel(self):
        self.running = False
        for task in list(self.tasks):
            task.cancel()
        await asyncio.gather(*list(self.tasks), return_exceptions=True)


async def ask_all(deck, entrance, streams=16):
    """Each request of the deck once; what was said to each."""
    load = Load(deck, entrance)
    places = iter(range(len(deck)))

    async def slot():
        for load.next in places:
            await load._ask()

    await asyncio.gather(*[slot() for _ in range(min(streams, len(deck)))])
    for record in load.records:
        if not record.ok:
            raise RuntimeError(f"request {record.request} of the reference failed: HTTP {record.status} {record.error}")
    return {r.request: r.said() for r in load.records}
