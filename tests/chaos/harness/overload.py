# SPDX-License-Identifier: Apache-2.0
"""The scenarios that ask for more than a cluster has."""
import asyncio
import random

from . import http
from .cluster import Shape

# Bounded waiting: what cannot be served soon is refused at once.
BOUNDED = ("--max-queue", 32, "--max-running", 64)
CALM = 8.0  # seconds in which the capacity is measured


def _per_second(records, since, until):
    """Requests that were answered in full within the time, and their tokens."""
    whole = [r for r in records if r.ok and since < r.ended <= until]
    return len(whole) / (until - since), sum(r.tokens for r in whole) / (until - since)


async def _capacity(trial):
    """The better of two closed loops: (requests/s, tokens/s)."""
    best = (0.0, 0.0)
    for streams in (trial.options.streams, 2 * trial.options.streams):
        trial.load.start(streams)
        await asyncio.sleep(2)
        since = trial.now
        await asyncio.sleep(CALM)
        trial.calm = (since, trial.now)
        best = max(best, _per_second(trial.load.records, since, trial.now), key=lambda pair: pair[1])
        await trial.load.stop()
    return best


async def overload(run):
    """Poisson arrivals at 3 × what the cluster can do"""
    shape = Shape(router_args=BOUNDED)
    async with run.trial("overload", shape, {"tokens": (40, 120)}) as trial:
        requests, tokens = await _capacity(trial)
        trial.fault("3 × capacity")
        trial.load.start_at_rate(3 * requests)
        await asyncio.sleep(5)  # the queue fills
        since = trial.now
        await asyncio.sleep(min(20, 60 * run.options.minutes))
        served, goodput = _per_second(trial.load.records, since, trial.now)
        await trial.end()
        bare = sum(1 for r in trial.load.records if r.shed and "\r\nretry-after:" not in r.head.lower())
        return trial.row({"goodput_share": [">=", 0.9], "shed_without_retry_after": ["<=", 0]}, sheds_count=False,
                         goodput_share=round(goodput / tokens, 3), peak_tokens_per_s=round(tokens, 1), goodput_tokens_per_s=round(goodput, 1),
                         peak_requests_per_s=round(requests, 2), served_requests_per_s=round(served, 2), shed_without_retry_after=bare)


class Memory:
    """RSS of processes that nobody kills, looked at now and then."""

    def __init__(self, nodes):
        self.nodes, self.samples = nodes, {n.name: [] for n in nodes}

    def look(self):
        for node in self.nodes:
            self.samples[node.name].append(node.process.memory())

    def growth(self):
        """The largest over all processes: the last fifth's mean over that of the second fifth, when caches have filled, less one."""
        def grown(samples):
            fifth = max(1, len(samples) // 5)
            mean = lambda part: sum(part) / len(part)  # noqa: E731
            return mean(samples[-fifth:]) / mean(samples[fifth:2 * fifth] or samples) - 1

        return {name: round(grown(samples), 4) for name, samples in self.samples.items() if samples}


async def _kill_at_random(trial, victims, memory, seconds, chance):
    """One process is down at a time; all are back at the end."""
    end = trial.now + seconds
    while trial.now < end:
        node = chance.choice(victims)
        trial.fault(f"kill {node.name}")
        node.process.kill()
        await asyncio.sleep(chance.uniform(0.2, 2))
        node.process.start()
        await (trial.cluster.router_ready if node in trial.cluster.routers else trial.cluster.worker_up)(node)
        until = trial.now + chance.uniform(1, 6)
        while trial.now < min(until, end):
            memory.look()
            await asyncio.sleep(1)


async def _requests_that_do_not_add_up(trial):
    """Of the gateway and the routers, each in a line, after all has ended."""
    fleet, wrong = trial.cluster, []
    gateway = await http.metrics(fleet.gateways[0].metrics_port, 10)
    if gateway is None:
        return ["the gateway's /metrics does not answer"]
    sent = sum(1 for r in trial.load.records if not r.error.startswith("no connection"))
    counted = gateway.sum("switchyard_gateway_requests_total", route="/v1/completions")
    if counted != sent:
        wrong.append(f"{sent} requests were sent, the gateway counts {counted:g}")
    if opened := gateway.sum("switchyard_gateway_open_requests"):
        wrong.append(f"the gateway still has {opened:g} open requests")
    for router in fleet.routers:
        page = await http.metrics(router.metrics_port, 10)
        for gauge in ("switchyard_router_running_sequences", "switchyard_router_waiting_requests"):
            if page is None or page.sum(gauge):
                wrong.append(f"{router.name}: {gauge} is {page.sum(gauge) if page else 'not told'}")
    return wrong


async def _parts_that_do_not_add_up(trial):
    """Between a router and a worker that both lived throughout: every part that was sent was answered or dropped as cancelled."""
    fleet, wrong = trial.cluster, []
    router, worker = fleet.routers[0], fleet.workers[0]
    said, heard = await http.metrics(router.metrics_port, 10), await http.metrics(worker.metrics_port, 10)
    if said is None or heard is None:
        return [f"{router.name} or {worker.name}: /metrics does not answer"]
    frames = {d: said.sum("switchyard_router_dispatch_frames_total", worker=fleet.known_as[worker.name], direction=d) for d in ("out", "in")}
    dropped = heard.sum("switchyard_worker_cancelled_frames_total")  # of all routers
    if not 0 <= frames["out"] - frames["in"] <= dropped:
        wrong.append(f"{router.name} sent {frames['out']:g} parts to {worker.name} and got {frames['in']:g} answers; at most {dropped:g} were cancelled")
    if waiting := heard.sum("switchyard_worker_waiting_frames"):
        wrong.append(f"{worker.name}: {waiting:g} frames wait still")
    for node in (*fleet.workers, *fleet.routers, *fleet.gateways):
        page = await http.metrics(node.metrics_port, 10)
        if page and (bugs := page.sum("switchyard_bugs_total")):
            wrong.append(f"{node.name}: {bugs:g} bugs survived (switchyard_bugs_total)")
    return wrong


async def random_kills(run):
    """--minutes at 1.5 × capacity with kills of workers and routers at random, and clients that go away"""
    shape = Shape(routers=2, kv_memory="48MiB", router_args=BOUNDED)
    async with run.trial("random_kills", shape, {"choices": 3, "tokens": (40, 160)}) as trial:
        requests, tokens = await _capacity(trial)
        trial.load.cancel_share = 0.05
        fleet = trial.cluster
        memory = Memory([fleet.workers[0], fleet.routers[0], *fleet.gateways])
        trial.load.start_at_rate(1.5 * requests)
        await asyncio.sleep(3)
        await _kill_at_random(trial, [*fleet.workers[1:], fleet.routers[1]], memory, 60 * run.options.minutes, random.Random(5))
        await trial.end()
        await asyncio.sleep(1)
        wrong, growth = [*await _requests_that_do_not_add_up(trial), *await _parts_that_do_not_add_up(trial)], memory.growth()
        return trial.row({"memory_growth": ["<=", 0.05], "counter_errors": ["<=", 0]}, sheds_count=False, memory_growth=max(map(abs, growth.values())),
                         memory_growth_of=growth, counter_errors=len(wrong), counters=wrong[:10], peak_tokens_per_s=round(tokens, 1),
                         answered=sum(r.ok for r in trial.load.records))
