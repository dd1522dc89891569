# SPDX-License-Identifier: Apache-2.0
"""Real processes on free ports, their logs in files, and their certain end."""
import asyncio
import ctypes
import os
import pathlib
import random
import shutil
import signal
import socket
import subprocess
import time

from . import http

ROOT = pathlib.Path(__file__).resolve().parents[3]
BIN = pathlib.Path(os.environ.get("SWITCHYARD_BIN_DIR", ROOT / "build/release/bin"))
START_SECONDS = 60
# Below the ports that systems hand out by themselves: a process that is down must find its port free when it comes back.
PORTS = range(15000, 30000)

_libc = ctypes.CDLL(None, use_errno=True)


class Failure(Exception):
    """What keeps a scenario from going on, in one line."""


def _die_with_parent():
    _libc.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


_given = set()  # whoever was given one may not listen there yet


def free_port():
    for _ in range(1000):
        port = random.choice(PORTS)
        if port in _given and len(_given) < len(PORTS) / 2:
            continue
        with socket.socket() as s:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                s.bind(("127.0.0.1", port))
                _given.add(port)
                return port
            except OSError:
                continue
    raise Failure(f"no free port in {PORTS}")


async def until(condition, seconds, what):
    """Asks again and again until the condition, which may be a coroutine function, holds."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        pause = 0.02
        if asyncio.iscoroutine(value):
            value, pause = await value, 0.1  # asks a service, which has other work
        if value:
            return value
        if time.monotonic() > deadline:
            raise Failure(f"{what}: not within {seconds:g} s")
        await asyncio.sleep(pause)


class Process:
    """One program that may be ended and started again under the same name, arguments and log."""

    def __init__(self, name, command, logs, environment=None):
        self.name, self.command, self.log = name, [str(c) for c in command], logs / f"{name}.log"
        self.environment = environment or {}
        self.popen, self.starts = None, 0

    def start(self):
        environment = {**{k: v for k, v in os.environ.items() if not k.startswith("SWITCHYARD_")}, **self.environment}
        with open(self.log, "ab") as log:
            log.write(f"--- start {self.starts}: {' '.join(self.command)}\n".encode())
            log.flush()
            self.popen = subprocess.Popen(self.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment,
                                          preexec_fn=_die_with_parent)
        self.starts += 1
        return self

    @property
    def pid(self):
        return self.popen.pid

    def running(self):
        return self.popen is not None and self.popen.poll() is None

    def signal(self, which):
        self.popen.send_signal(which)

    async def wait(self, seconds):
        """Its exit status; whoever does not end in time is killed."""
        try:
            await until(lambda: self.popen.poll() is not None, seconds, f"end of {self.name}")
        except Failure:
            self.kill()
            raise
        return self.popen.returncode

    async def terminate(self, seconds=45):
        self.signal(signal.SIGTERM)
        return await self.wait(seconds)

    def kill(self):
        if self.popen is not None:
            if self.popen.poll() is None:
                self.popen.kill()
            self.popen.wait()

    def memory(self, key="VmRSS"):
        """Bytes, as /proc says."""
        for line in pathlib.Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith(key + ":"):
                return int(line.split()[1]) * 1024
        raise Failure(f"/proc/{self.pid}/status of {self.name} has no {key}")

    def last_words(self):
        lines = self.log.read_text(errors="replace").splitlines() if self.log.exists() else []
        return lines[-1] if lines else "nothing"


def knows(binary, flag):
    """Whether --help of a program names the flag."""
    out = subprocess.run([str(BIN / binary), "--help"], capture_output=True, text=True, timeout=20)
    return flag in out.stdout


class Etcd:
    """One member, where the program is installed."""

    def __init__(self, logs):
        self.port, peer, self.data = free_port(), f"http://127.0.0.1:{free_port()}", logs / "etcd.data"
        self.url = f"http://127.0.0.1:{self.port}"
        self.process = Process("etcd", ["etcd", "--data-dir", self.data, "--listen-client-urls", self.url, "--advertise-client-urls", self.url,
                                        "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", f"default={peer}",
                                        "--log-level", "error"], logs)

    @staticmethod
    def installed():
        return shutil.which("etcd") is not None

    async def start(self):
        shutil.rmtree(self.data, ignore_errors=True)  # of a run before
        self.process.start()

        async def healthy():
            if not self.process.running():
                raise Failure(f"etcd ended by itself: {self.process.last_words()}")
            return '"true"' in (await http.get(self.port, "/health"))[1]

        await until(healthy, START_SECONDS, "etcd healthy")


class Link:
    """The fault proxy before one address, in a process of its own."""

    def __init__(self, name, target_port, logs):
        self.port, self.control = free_port(), str(logs / f"{name}.sock")
        program = pathlib.Path(__file__).resolve().parents[1] / "fault_proxy.py"
        self.process = Process(name, ["python3", program, "--listen", f"127.0.0.1:{self.port}", "--to", f"127.0.0.1:{target_port}",
                                      "--control", self.control], logs)

    async def start(self):
        self.process.start()
        await until(lambda: os.path.exists(self.control), START_SECONDS, f"start of {self.process.name}")

    async def tell(self, *lines):
        reader, writer = await asyncio.open_unix_connection(self.control)
        for line in lines:
            writer.write(line.encode() + b"\n")
            answer = (await asyncio.wait_for(reader.readline(), 5)).decode().strip()
            if answer.startswith("error") or not answer:
                raise Failure(f"{self.process.name}: \"{line}\": {answer}")
        writer.close()
        return answer
