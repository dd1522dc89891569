"""Starts Switchyard's real binaries on free ports and ends them, whatever happens.

A process announces itself on standard output, one fact a line ("http: URL", "grpc: ADDR", "listening on ADDR",
"metrics: URL", "ready"); logs go to standard error and are shown when a test fails.
"""
import os
import pathlib
import queue
import signal
import subprocess
import sys
import threading
import time

import requests

ROOT = pathlib.Path(__file__).resolve().parents[2]
BIN = pathlib.Path(os.environ.get("SWITCHYARD_BIN_DIR", ROOT / "build/release/bin"))
MODEL = ROOT / "models/tiny-r1"
START_SECONDS = 60


class Process:
    def __init__(self, binary, *args, env=None):
        self.command = [str(BIN / binary), *map(str, args)]
        self.facts, self._lines, self.log = {}, queue.Queue(), []
        environment = {k: v for k, v in os.environ.items() if not k.startswith("SWITCHYARD_")}
        self.process = subprocess.Popen(self.command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                        env={**environment, **(env or {})})
        threading.Thread(target=self._read, args=(self.process.stdout, self._lines.put), daemon=True).start()
        threading.Thread(target=self._read, args=(self.process.stderr, self.log.append), daemon=True).start()

    @staticmethod
    def _read(stream, keep):
        for line in stream:
            keep(line.rstrip("\n"))
        keep(None)

    def fact(self, name):
        """The value behind "name: value" or "name value" on standard output; waits for it."""
        deadline = time.monotonic() + START_SECONDS
        while name not in self.facts:
            try:
                line = self._lines.get(timeout=max(0.01, deadline - time.monotonic()))
            except queue.Empty:
                line = None
            if line is None:
                raise AssertionError(f"{self.command} never said \"{name}\"; log:\n" + "\n".join(filter(None, self.log)))
            for key in ("http", "grpc", "metrics"):
                if line.startswith(key + ": "):
                    self.facts[key] = line.split(": ", 1)[1]
            if line.startswith("listening on "):
                self.facts["listening"] = line[len("listening on "):]
            if line == "ready":
                self.facts["ready"] = True
        return self.facts[name]

    def stop(self, how=signal.SIGTERM, seconds=20):
        """Sends the signal and returns the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(how)
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"{self.command} did not end within {seconds} s; log:\n" + "\n".join(filter(None, self.log)))

    def kill(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    def __enter__(self):
        return self

    def __exit__(self, kind, value, trace):
        self.kill()
        if kind is not None:
            print(f"--- log of {self.command}", *filter(None, self.log[-60:]), sep="\n", file=sys.stderr)


def serve(*args, model=MODEL, env=None):
    threads = () if "--threads" in args else ("--threads", 2)
    return Process("switchyard", "serve", model, "--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0", *threads, *args, env=env)


def worker(experts, *args, model=MODEL, listen="127.0.0.1:0"):
    return Process("switchyard-expert-worker", "--model", model, "--experts", experts, "--listen", listen, "--threads", 1, *args)


def router(workers, *args, model=MODEL, listen="127.0.0.1:0"):
    return Process("switchyard-router", "--model", model, "--workers", ",".join(workers), "--listen", listen, "--threads", 1, *args)


def gateway(routers, *args, model=MODEL):
    return Process("switchyard-gateway", "--model", model, "--routers", ",".join(routers), "--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0", *args)


def wait_for(condition, seconds=START_SECONDS):
    """Asks again and again until the condition holds; what it returned then."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        threading.Event().wait(0.05)
    return value


def wait_ready(url, seconds=START_SECONDS):
    def ready():
        try:
            return requests.get(url + "/ready", timeout=5).status_code == 200
        except requests.ConnectionError:
            return False

    wait_for(ready, seconds)


class Cluster:
    """Workers with uneven parts, one router, one gateway: five processes. Rows go through shared memory, or, with --no-shared-memory, over TCP."""

    def __init__(self, parts=("0-40", "41-90", "91-127"), model=MODEL, dtype="bfloat16", router_args=(), worker_args=(), gateway_args=()):
        self.processes = []
        try:
            self.workers = [self._add(worker(p, "--dtype", dtype, *worker_args, model=model)) for p in parts]
            addresses = [w.fact("listening") for w in self.workers]
            self.router = self._add(router(addresses, "--dtype", dtype, *router_args, model=model))
            self.gateway = self._add(gateway([self.router.fact("listening")], *gateway_args, model=model))
            self.url = self.gateway.fact("http")
            self.grpc = self.gateway.fact("grpc")
            wait_ready(self.url)
        except BaseException:
            self.close()
            raise

    def _add(self, process):
        self.processes.append(process)
        return process

    def close(self):
        for process in self.processes:
            process.kill()

    def __enter__(self):
        return self

    def __exit__(self, kind, value, trace):
        self.close()
        if kind is not None:
            for p in self.processes:
                print(f"--- log of {p.command}", *filter(None, p.log[-30:]), sep="\n", file=sys.stderr)
