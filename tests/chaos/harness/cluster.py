# SPDX-License-Identifier: Apache-2.0
"""A cluster of real processes that scenarios may break and mend one by one."""
import asyncio
import dataclasses
import json
import pathlib

from . import http
from .clock import Clock
from .processes import BIN, ROOT, START_SECONDS, Etcd, Failure, Link, Process, free_port, until

MODEL = ROOT / "models/tiny-r1"
EXPERTS, MOE_LAYERS = 128, 4
LONE = ("0/3", "1/3", "2/3")                          # each expert on one of three workers
REPLICATED = ("0-85", "43-127", "0-42,86-127")        # each on two of three


@dataclasses.dataclass
class Shape:
    parts: tuple = REPLICATED
    routers: int = 1
    gateways: int = 1
    shared_memory: bool = True
    spare: str | None = None           # experts of a worker that is not started; routers know its address
    etcd: bool = False                 # they do not: it announces itself in an etcd, where they look
    slow_worker: int | None = None     # this worker's link goes through the fault proxy
    models: tuple = ()                 # copies of the model, in the workers' order, instead of the one that all read
    clocks: bool = False               # each process has a wall clock of its own
    placement: pathlib.Path | None = None  # the routers' placement file, at first with the parts as they are
    kv_memory: str = "128MiB"
    router_args: tuple = ()
    args_of_worker: dict = dataclasses.field(default_factory=dict)  # by its place
    worker_args: tuple = ()
    gateway_args: tuple = ()


@dataclasses.dataclass
class Node:
    """A service: its process, the port where it serves and the port of its metrics."""
    process: Process
    port: int
    metrics_port: int

    clock: Clock | None = None

    @property
    def name(self):
        return self.process.name

    @property
    def address(self):
        return f"127.0.0.1:{self.port}"


class Cluster:
    def __init__(self, shape, logs):
        self.shape, self.logs = shape, logs
        self.links = []
        wire = () if shape.shared_memory else ("--no-shared-memory",)
        parts = [*shape.parts, *([shape.spare] if shape.spare else [])]
        self.etcd = Etcd(logs) if shape.etcd else None
        found = ("--etcd", self.etcd.url) if shape.etcd else ()
        self.workers = [self._worker(i, part, (*wire, *(found if i == len(shape.parts) else ()), *shape.worker_args)) for i, part in enumerate(parts)]
        self.spare = self.workers.pop() if shape.spare else None
        addresses = [w.address for w in (*self.workers, *([self.spare] if self.spare else []))]
        if shape.slow_worker is not None:
            self.links.append(Link("link", self.workers[shape.slow_worker].port, logs))
            addresses[shape.slow_worker] = f"127.0.0.1:{self.links[0].port}"
        self.known_as = dict(zip([w.name for w in self.workers] + ([self.spare.name] if self.spare else []), addresses))
        placed = ("--placement", shape.placement) if shape.placement else ()
        if placed:
            self.place(1, shape.parts)
        given = addresses[:len(self.workers)] if shape.etcd else addresses
        self.routers = [self._router(i, given, (*wire, *placed, *found, *shape.router_args)) for i in range(shape.routers)]
        self.gateways = [self._gateway(i, shape.gateway_args) for i in range(shape.gateways)]
        self.in_rotation = list(self.gateways)  # what a load balancer before the gateways would choose from
        self.turn = 0

    def _started_as(self, name, command, port, metrics_port):
        clock = Clock(self.logs / f"{name}.clock") if self.shape.clocks else None
        return Node(Process(name, command, self.logs, clock and clock.environment()), port, metrics_port, clock)

    def _node(self, name, binary, args, model=MODEL):
        port, metrics = free_port(), free_port()
        ports = [a.format(port=port, metrics=metrics) for a in ("--listen", "127.0.0.1:{port}", "--metrics", "127.0.0.1:{metrics}")]
        return self._started_as(name, [BIN / binary, "--model", model, *ports, "--threads", 1, *args], port, metrics)

    def _worker(self, i, part, args):
        return self._node(f"worker{i}", "switchyard-expert-worker", ("--experts", part, *args, *self.shape.args_of_worker.get(i, ())),
                          self.shape.models[i] if self.shape.models else MODEL)

    def _router(self, i, addresses, args):
        return self._node(f"router{i}", "switchyard-router", ("--workers", ",".join(addresses), "--kv-memory", self.shape.kv_memory,
                                                                "--expert-metrics", "summary", *args))

    def _gateway(self, i, args):
        port = free_port()
        routers = ",".join(r.address for r in self.routers)
        return self._started_as(f"gateway{i}", [BIN / "switchyard-gateway", "--model", MODEL, "--routers", routers, "--http", f"127.0.0.1:{port}",
                                                "--grpc", f"127.0.0.1:{free_port()}", *args], port, port)

    @property
    def nodes(self):
        return [*self.workers, *([self.spare] if self.spare else []), *self.routers, *self.gateways]

    async def start(self):
        if self.etcd:
            await self.etcd.start()
        for link in self.links:
            await link.start()
        for node in self.nodes:
            if node is not self.spare:
                node.process.start()
        for gateway in self.gateways:
            await self.ready(gateway, check=self.check_alive)
        for worker in self.workers:
            await self.worker_up(worker)

    def close(self):
        for process in [n.process for n in self.nodes] + [helper.process for helper in (*self.links, *([self.etcd] if self.etcd else []))]:
            process.kill()

    def entrance(self):
        """The port of a gateway, in turn."""
        self.turn += 1
        return self.in_rotation[self.turn % len(self.in_rotation)].port

    def check_alive(self):
        """Names who has ended although nobody ended it."""
        for node in self.nodes:
            if node is not self.spare:
                self._must_run(node)

    def place(self, epoch, parts):
        """A new version of the placement file, in one piece."""
        document = {"epoch": epoch, "workers": [{"worker": self.known_as[w.name], "holds": [{"layers": "*", "experts": part}]}
                                                for w, part in zip(self.workers, parts)]}
        new = self.shape.placement.with_suffix(".new")
        new.write_text(json.dumps(document))
        new.replace(self.shape.placement)

    async def placed(self, parts, seconds=START_SECONDS):
        """Until each worker holds its part and has given up everything else."""
        def count(part):
            ends = [r.split("-") for r in part.split(",")]
            return MOE_LAYERS * sum(int(e[-1]) - int(e[0]) + 1 for e in ends)

        async def is_placed():
            pages = await asyncio.gather(*[http.metrics(w.metrics_port) for w in self.workers])
            return all(p and p.sum("switchyard_worker_experts") == count(part) for p, part in zip(pages, parts))

        await until(is_placed, seconds, "every worker holds exactly what the new placement says")

    async def ready(self, gateway, seconds=START_SECONDS, check=lambda: None):
        async def is_ready():
            check()
            self._must_run(gateway)
            return (await http.get(gateway.port, "/ready"))[0] == 200

        await until(is_ready, seconds, f"{gateway.name} ready")

    async def worker_up(self, worker, seconds=START_SECONDS):
        """Until every running router has it."""
        async def is_up():
            self._must_run(worker)
            pages = await asyncio.gather(*[http.metrics(r.metrics_port) for r in self.routers if r.process.running()])
            return all(p and p.sum("switchyard_router_worker_up", worker=self.known_as[worker.name]) == 1 for p in pages)

        await until(is_up, seconds, f"{worker.name} up at the routers")

    async def spare_forgotten(self, seconds=START_SECONDS):
        """Until no router has a link to the spare that etcd had told them of."""
        async def is_forgotten():
            pages = await asyncio.gather(*[http.metrics(r.metrics_port) for r in self.routers])
            return all(p and p.sum("switchyard_router_known_workers") == len(self.workers) for p in pages)

        await until(is_forgotten, seconds, f"{self.spare.name} forgotten by the routers")

    async def router_ready(self, router, seconds=START_SECONDS):
        """Until every gateway in rotation may use it."""
        async def is_ready():
            self._must_run(router)
            pages = await asyncio.gather(*[http.metrics(g.metrics_port) for g in self.in_rotation])
            return all(p and p.sum("switchyard_gateway_router_ready", router=router.address) == 1 for p in pages)

        await until(is_ready, seconds, f"{router.name} ready at the gateways")

    @staticmethod
    def _must_run(node):
        if not node.process.running():
            raise Failure(f"{node.name} ended by itself with {node.process.popen.returncode}: {node.process.last_words()}")

    async def __aenter__(self):
        try:
            await self.start()
        except BaseException:
            self.close()
            raise
        return self

    async def __aexit__(self, *_):
        self.close()


def expert_bytes():
    """Of all routed experts, in the checkpoint."""
    config = json.loads((MODEL / "config.json").read_text())
    return MOE_LAYERS * EXPERTS * 3 * config["hidden_size"] * config["moe_intermediate_size"] * 2
