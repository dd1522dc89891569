# SPDX-License-Identifier: Apache-2.0
"""The scenarios in which not a process fails but what it stands on: files, clocks, memory."""
import asyncio
import contextlib
import ctypes
import json
import os
import pathlib
import re
import resource
import shutil
import subprocess

from . import cluster, http, measure
from .cluster import LONE, MODEL, Shape
from .processes import BIN, Failure
from .scenarios import bring_back

HOUR = 3600
WEIGHTS = "model.safetensors"


def _copy(run, name):
    """The model once more, in files of its own."""
    path = run.options.logs / name
    shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(MODEL, path)
    return path


def _damage(model, experts):
    """Another bit, one that no number's size shows, in the last matrix of each of these experts, in every layer."""
    with open(model / WEIGHTS, "r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        for name, tensor in header.items():
            if (m := re.search(r"\.experts\.(\d+)\.down_proj", name)) and int(m[1]) in experts:
                file.seek(8 + length + tensor["data_offsets"][0] + 100)  # not in the middle, where the checkpoint's identity is sampled
                byte = file.read(1)[0]
                file.seek(-1, os.SEEK_CUR)
                file.write(bytes([byte ^ 1]))


async def _sum(node, name, **labels):
    page = await http.metrics(node.metrics_port)
    if page is None:
        raise Failure(f"{node.name}: /metrics does not answer")
    return page.sum(name, **labels)


async def corrupt_shard(run):
    """a worker's copy of the model has a wrong bit in each expert that it is to take over from one that dies"""
    good, bad = _copy(run, "good"), _copy(run, "bad")
    for model in (good, bad):
        subprocess.run([BIN / "switchyard", "checksums", model], check=True, capture_output=True, timeout=60)
    _damage(bad, range(40))  # all that the first worker holds
    async with run.trial("corrupt_shard", Shape(parts=("0-39", "40-79", "80-127"), models=(good, bad, good))) as trial:
        await trial.undisturbed()
        dies, holds_bad, _ = trial.cluster.workers
        trial.fault(f"kill {dies.name}")
        dies.process.kill()
        await asyncio.sleep(4)
        refused = await _sum(holds_bad, "switchyard_worker_loads_total", result="failed")
        await bring_back(trial, dies)
        await asyncio.sleep(1)
        await trial.end()
        return trial.row({"damaged_refused": [">=", 1]}, damaged_refused=refused)


async def clock_jump(run):
    """the wall clock of each process jumps an hour ahead, two back and home again, then those of all; with all set back a worker and a router die"""
    async with run.trial("clock_jump", Shape(routers=2, clocks=True)) as trial:
        await trial.undisturbed()
        fleet = trial.cluster

        async def jump(nodes, hours, what):
            trial.fault(f"jump of {what} {hours:+} h")
            for node in nodes:
                node.clock.set(hours * HOUR)
            await asyncio.sleep(min(1.5, run.options.calm_seconds / 5))

        for node in (fleet.workers[0], fleet.routers[0], fleet.gateways[0]):
            for hours in (1, -1, 0):
                await jump([node], hours, node.name)
        for hours in (1, -1):
            await jump(fleet.nodes, hours, "all")
        for node in (fleet.workers[1], fleet.routers[1]):
            trial.fault(f"kill {node.name}")
            node.process.kill()
            await asyncio.sleep(1)
            await bring_back(trial, node)
            await asyncio.sleep(1)
        await jump(fleet.nodes, 0, "all")
        await trial.end()
        stalls = [s for window in trial.windows("jump") for s in measure.stalls(trial.load.records, *window)]
        return trial.row({"jump_stall_p99_ms": ["<=", 300]}, jump_stall_p99_ms=measure.ms(measure.percentile(stalls, 0.99)))


class _Vector(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]


def _page_out(pid, path):
    """What the kernel does where memory is short: a file's pages leave a process, and then the page cache."""
    libc, madv_pageout, process_madvise = ctypes.CDLL(None, use_errno=True), 21, 440
    lines = [line.split() for line in pathlib.Path(f"/proc/{pid}/maps").read_text().splitlines() if line.endswith(str(path))]
    ends = [[int(end, 16) for end in line[0].split("-")] for line in lines]
    pid_fd = os.pidfd_open(pid)
    try:
        for begin, end in ends:
            piece = _Vector(begin, end - begin)
            if libc.syscall(process_madvise, pid_fd, ctypes.byref(piece), ctypes.c_ulong(1), madv_pageout, ctypes.c_uint(0)) < 0:
                raise Failure(f"process_madvise: {os.strerror(ctypes.get_errno())}")
    finally:
        os.close(pid_fd)
    with open(path, "rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@contextlib.asynccontextmanager
async def _short_of_memory(trial, models):
    """While it lasts, the weights of all workers are driven out of memory again and again."""
    async def drive_out():
        while True:
            for worker, model in zip(trial.cluster.workers, models):
                if worker.process.running():
                    with contextlib.suppress(ProcessLookupError, FileNotFoundError):
                        _page_out(worker.process.pid, model / WEIGHTS)
            await asyncio.sleep(0.05)

    task = asyncio.ensure_future(drive_out())
    try:
        yield
        if task.done():
            task.result()
    finally:
        task.cancel()


async def memory_pressure(run):
    """all workers' weights are driven out of memory again and again, and one has room for a third of its own; it dies, and who takes over may map no more"""
    models = tuple(_copy(run, f"model{i}") for i in range(len(LONE)))
    room = cluster.expert_bytes() // len(LONE) // 3
    shape = Shape(parts=LONE, models=models, args_of_worker={0: ("--experts-memory", f"{room >> 10}KiB")})
    async with run.trial("memory_pressure", shape) as trial:
        dies, bounded, _ = trial.cluster.workers
        while await _sum(bounded, "switchyard_worker_loads_total", result="ok"):  # for one that was late: it has mapped what it is not to
            await bounded.process.terminate()
            await bring_back(trial, bounded)
        await trial.undisturbed()
        async with _short_of_memory(trial, models):
            trial.fault("pages leave memory")
            await asyncio.sleep(4)
            misses = await _sum(dies, "switchyard_worker_memory_misses_total")
            size = bounded.process.memory("VmSize") + (1 << 20)
            resource.prlimit(bounded.process.pid, resource.RLIMIT_AS, (size, size))
            trial.fault(f"kill {dies.name}, {bounded.name} may map no more")
            dies.process.kill()
            await asyncio.sleep(4)
            failed = await _sum(bounded, "switchyard_worker_loads_total", result="failed")
            await bring_back(trial, dies)
            await asyncio.sleep(1)
        await trial.end()
        return trial.row({"loads_failed": [">=", 1], "memory_misses": [">=", 1]}, loads_failed=failed, memory_misses=misses)
