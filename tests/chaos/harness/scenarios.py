# SPDX-License-Identifier: Apache-2.0
"""What is done to a cluster, and what must then be: one function a row of the table, each with its bounds."""
import asyncio
import signal
import time

from . import cluster, partition
from .cluster import LONE, REPLICATED, Shape
from .processes import Etcd, Failure, knows

DOWN_SECONDS = 1.0     # between a kill and the new start
SETTLE_SECONDS = 0.7   # between a process being back and the next fault


async def bring_back(trial, node):
    """Starts a node again and waits until its callers have it."""
    node.process.start()
    if node in trial.cluster.routers:
        await trial.cluster.router_ready(node)
    elif node in trial.cluster.gateways:
        await trial.cluster.ready(node)
    else:
        await trial.cluster.worker_up(node)


async def _kill_in_turn(trial, nodes, times):
    for i in range(times):
        node = nodes[i % len(nodes)]
        trial.fault(f"kill {node.name}")
        node.process.kill()
        await asyncio.sleep(DOWN_SECONDS)
        await bring_back(trial, node)
        await asyncio.sleep(SETTLE_SECONDS)


async def kill_worker_replica(run):
    """kill -9 one of 3 workers, each expert on 2, and start it again; --kills times"""
    async with run.trial("kill_worker_replica", Shape()) as trial:
        await trial.undisturbed()
        await _kill_in_turn(trial, trial.cluster.workers, run.options.kills)
        await trial.end()
        return trial.row({"stall_p99_ms": ["<=", 300]})


def _read_bandwidth():
    """Bytes a second at which this machine reads a checkpoint that it has in memory, as survivors here do."""
    began, count = time.monotonic(), 0
    with open(cluster.MODEL / "model.safetensors", "rb", buffering=0) as file:
        while piece := file.read(1 << 20):
            count += len(piece)
    return count / (time.monotonic() - began)


async def kill_worker_orphan(run):
    """kill -9 a worker whose experts nobody else holds"""
    async with run.trial("kill_worker_orphan", Shape(parts=LONE)) as trial:
        await trial.undisturbed()
        lost = cluster.expert_bytes() // len(LONE)
        bound = 1000 + 1000 * lost / ((len(LONE) - 1) * _read_bandwidth())
        for worker in trial.cluster.workers[:min(3, run.options.kills)]:
            trial.fault(f"kill {worker.name}")
            worker.process.kill()
            await asyncio.sleep(4)
            await bring_back(trial, worker)
            await asyncio.sleep(2)
        await trial.end()
        return trial.row({"stall_p99_ms": ["<=", round(bound, 1)]}, lost_bytes=lost)


async def partition_worker(run):
    """the packets of one worker are dropped, with no RST, for 4 s"""
    dropper = partition.available()
    shape = Shape(shared_memory=False, slow_worker=None if dropper else 1)
    async with run.trial("partition_worker", shape) as trial:
        await trial.undisturbed()
        for i in range(min(3, run.options.kills)):
            worker = trial.cluster.workers[1]
            trial.fault(f"partition {worker.name}")
            async with partition.Cut(worker.port) if dropper else partition.Hole(trial.cluster.links[0]):
                await asyncio.sleep(4)
            trial.fault(f"heal {worker.name}")
            await trial.cluster.worker_up(worker)
            await asyncio.sleep(2)
        await trial.end()
        return trial.row({"stall_p99_ms": ["<=", 500]}, how="iptables" if dropper else "fault proxy")


async def kill_router(run):
    """kill -9 one of 2 routers and start it again; some requests with n = 3, some with stop strings"""
    async with run.trial("kill_router", Shape(routers=2), {"choices": 3, "stops": True}) as trial:
        await trial.undisturbed()
        await _kill_in_turn(trial, trial.cluster.routers, max(2, run.options.kills // 2))
        await trial.end()
        return trial.row({})


async def sigstop_router(run):
    """SIGSTOP one of 2 routers for 5 s: its streams go on elsewhere, and what it says when it goes on counts no more"""
    async with run.trial("sigstop_router", Shape(routers=2), {"choices": 3, "stops": True}) as trial:
        await trial.undisturbed()
        for router in trial.cluster.routers:
            trial.fault(f"SIGSTOP {router.name}")
            await _freeze(router, 5)
            trial.fault(f"SIGCONT {router.name}")
            await trial.cluster.router_ready(router)
            await asyncio.sleep(2)
        await trial.end()
        return trial.row({})


async def _freeze(node, seconds):
    node.process.signal(signal.SIGSTOP)
    try:
        await asyncio.sleep(seconds)
    finally:
        node.process.signal(signal.SIGCONT)


async def _restart(trial, node):
    """SIGTERM, wait for the drain, start again; how it ended."""
    trial.fault(f"SIGTERM {node.name}")
    rotation = trial.cluster.in_rotation
    if node in rotation:
        rotation.remove(node)  # a load balancer sends nothing new to whom it is about to end
    status = await node.process.terminate()
    await bring_back(trial, node)
    if node in trial.cluster.gateways:
        rotation.append(node)
    await asyncio.sleep(SETTLE_SECONDS)
    return status


async def rolling_restart(run):
    """SIGTERM and restart of every process in turn; then a worker that etcd tells of (without etcd: known by its address) is added and taken away, twice"""
    by_etcd = Etcd.installed()
    shape = Shape(routers=2, gateways=2, spare="0-127", etcd=by_etcd)
    async with run.trial("rolling_restart", shape) as trial:
        await trial.undisturbed()
        fleet = trial.cluster
        exits = [await _restart(trial, node) for node in (*fleet.workers, *fleet.routers, *fleet.gateways)]
        for _ in range(2):  # the second time in the place that the first one left
            trial.fault("add a worker")
            await bring_back(trial, fleet.spare)
            await asyncio.sleep(2)
            trial.fault("take a worker away")
            exits.append(await fleet.spare.process.terminate())
            if by_etcd:
                await fleet.spare_forgotten()
            await asyncio.sleep(2)
        await trial.end()
        return trial.row({"answers_503": ["<=", 0], "bad_exits": ["<=", 0]}, bad_exits=sum(map(bool, exits)),
                         added_by="etcd" if by_etcd else "address")


async def sigstop_worker(run):
    """SIGSTOP a worker for 5 s, each expert on 2"""
    async with run.trial("sigstop_worker", Shape()) as trial:
        await trial.undisturbed()
        for worker in trial.cluster.workers[:min(3, run.options.kills)]:
            trial.fault(f"SIGSTOP {worker.name}")
            await _freeze(worker, 5)
            trial.fault(f"SIGCONT {worker.name}")
            await trial.cluster.worker_up(worker)
            await asyncio.sleep(1)
        await trial.end()
        of_each = [trial.p99_ms([window]) for window in trial.windows("SIGSTOP")]  # a worker that has no work hides none that has
        worst = None if None in of_each else max(of_each)
        return trial.row({"inter_token_p99_ms": ["<=", 2 * trial.undisturbed_p99_ms()]}, inter_token_p99_ms=worst, inter_token_p99_ms_each=of_each)


SLOW = ("both delay 20 10",)
STALL_SECONDS, STALL_EVERY = 0.3, 3.0


def _link_allows(row, streams):
    """Tokens a second if every layer of every step waited for the slow link, there and back, at its slowest, and stood still while it stalls."""
    step = streams / row["undisturbed_tokens_per_s"]
    return streams / (step + cluster.MOE_LAYERS * 2 * 0.030) * (1 - STALL_SECONDS / STALL_EVERY)


async def slow_link(run, name="slow_link", parts=REPLICATED):
    """20 ms ± 10 ms each way and stalls on one worker's link, over TCP, each expert on 2"""
    async with run.trial(name, Shape(parts=parts, shared_memory=False, slow_worker=0)) as trial:
        await trial.undisturbed()
        link = trial.cluster.links[0]
        trial.fault("delay")
        await link.tell(*SLOW)
        for _ in range(4):
            await asyncio.sleep(STALL_EVERY - STALL_SECONDS)
            trial.fault("stall")
            await link.tell("both stall")
            await asyncio.sleep(STALL_SECONDS)
            await link.tell(*SLOW)
        trial.ended = trial.now
        row = trial.row({})  # of the slow time alone
        await link.tell("both pass")
        await trial.end()
        allowed = round(_link_allows(row, run.options.streams), 1)
        return trial.row({"slow_tokens_per_s": [">=", allowed]}, slow_tokens_per_s=row["tokens_per_s"], link_allows_tokens_per_s=allowed)


async def slow_link_lone(run):
    """the same where nobody else holds that worker's experts"""
    return await slow_link(run, "slow_link_lone", LONE)


async def migrate(run):
    """a quarter of the experts moves to another worker and back under load, by new versions of the placement file"""
    if not knows("switchyard-router", "--placement"):
        raise Failure("switchyard-router has no --placement: experts cannot be moved while it runs")
    path = run.options.logs / "placement.json"
    home, moved = ("0-39", "40-79", "80-127"), ("0-7", "8-79", "80-127")  # experts 8-39: a quarter of 128
    async with run.trial("migrate", Shape(parts=home, placement=path)) as trial:
        await trial.undisturbed()
        for epoch, parts in ((2, moved), (3, home)):
            trial.fault(f"migrate to {parts[0]}")
            trial.cluster.place(epoch, parts)
            await trial.cluster.placed(parts)
            trial.fault("placed")
            await asyncio.sleep(2)
        await trial.end()
        gaps = trial.p99_ms(trial.windows("migrate"))
        return trial.row({"migration_p99_ms": ["<=", trial.undisturbed_p99_ms() + 20]}, migration_p99_ms=gaps)
