# SPDX-License-Identifier: Apache-2.0
"""Servers of both sides, and the one client that asks them all."""
import json
import pathlib
import re
import socket
import time
import urllib.error
import urllib.request

from .peer import parse_batched, parse_bench
from .processes import MeasureError

START_SECONDS = 300


class Server:
    """Something that answers OpenAI's completions at `url`; `children` are its processes."""

    def __init__(self, url, children):
        self.url, self.children = url, children

    @property
    def pid(self):
        return self.children[0].pid

    def isa(self):
        """What our server's log says that it computes with."""
        m = re.search(r" on (\w+), \d+ threads", self.children[0].text())
        return m[1] if m else "unknown"

    def first_token(self):
        """Asks for one token and waits for it."""
        body = json.dumps({"prompt": "one", "max_tokens": 1, "temperature": 0, "ignore_eos": True}).encode()
        request = urllib.request.Request(self.url + "/v1/completions", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=START_SECONDS) as answer:
            if not json.load(answer)["choices"]:
                raise MeasureError(f"{self.url}: an answer without a choice")

    def metrics(self):
        """Series of /metrics, summed over their labels."""
        with urllib.request.urlopen(self.url + "/metrics", timeout=60) as answer:
            return parse_metrics(answer.read().decode())

    def resident(self):
        """Bytes by the names of /proc/PID/status, of the first process."""
        return parse_status(pathlib.Path(f"/proc/{self.pid}/status").read_text())

    def cpu_seconds(self):
        """CPU time of the first process by thread name."""
        out = {}
        for task in pathlib.Path(f"/proc/{self.pid}/task").iterdir():
            try:
                name, seconds = parse_stat((task / "stat").read_text())
            except FileNotFoundError:  # a thread that has ended
                continue
            out[name] = out.get(name, 0) + seconds
        return out


def parse_metrics(text):
    out = {}
    for line in text.splitlines():
        if line and not line.startswith("#"):
            name, value = line.rsplit(" ", 1)
            name = name.split("{", 1)[0]
            out[name] = out.get(name, 0) + float(value)
    return out


def parse_status(text):
    return {m[1]: 1024 * int(m[2]) for m in re.finditer(r"^(Vm\w+|Rss\w+):\s+(\d+) kB$", text, re.M)}


def parse_stat(text):
    """(name, CPU seconds) of a /proc/PID/task/TID/stat."""
    name = text[text.index("(") + 1:text.rindex(")")]
    fields = text[text.rindex(")") + 2:].split()
    return name, (int(fields[11]) + int(fields[12])) / 100


def answers(url):
    """Whether a GET of `url` gives 200."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.status == 200
    except (urllib.error.URLError, OSError):
        return False


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def connects(port):
    """Whether something listens on this port of the loopback."""
    with socket.socket() as s:
        return s.connect_ex(("127.0.0.1", port)) == 0


class Ours:
    """Switchyard's programs in `bin_dir`."""

    def __init__(self, processes, bin_dir, threads):
        self.processes, self.bin_dir, self.threads = processes, bin_dir, threads

    def serve(self, model, *args):
        child = self.processes.start(self.bin_dir / "switchyard", "serve", model, "--threads", self.threads, "--http", "127.0.0.1:0",
                                     "--grpc", "127.0.0.1:0", *args)
        try:
            return self._ready(child, [child])
        except MeasureError:
            self.processes.stop(child)
            raise

    def cluster(self, model, workers, *args):
        """A gateway, a router and `workers` expert workers, which meet as those of one host do."""
        started = []

        def start(program, *options):
            started.append(self.processes.start(self.bin_dir / program, "--model", model, *options))
            return started[-1]

        def address(child):
            return child.wait_for(lambda: fact(child.text(), "listening on "), "address", START_SECONDS)

        try:
            experts = [start("switchyard-expert-worker", "--experts", f"{i}/{workers}", "--listen", "127.0.0.1:0", "--threads",
                             self.threads) for i in range(workers)]
            router = start("switchyard-router", "--workers", ",".join(map(address, experts)), "--listen", "127.0.0.1:0", "--threads",
                           self.threads, *args)
            gateway = start("switchyard-gateway", "--routers", address(router), "--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0")
            return self._ready(gateway, started)
        except MeasureError:
            self.processes.stop(*reversed(started))
            raise

    def bench(self, server, streams, prompt, tokens, requests=None, seed=1):
        """Report of `switchyard bench` on a server of either side."""
        text = self.processes.run(
            self.bin_dir / "switchyard", "bench", "--url", server.url, "--concurrency", streams, "--requests", requests or streams,
            "--prompt-tokens", prompt, "--max-tokens", tokens, "--warmup", 0, "--seed", seed, "--json", "-")
        report = json.loads(text)
        if report["failed"]:
            raise MeasureError(f"{report['failed']} of {report['requests']} requests failed: {report['first_error']}")
        return report

    def stop(self, server):
        self.processes.stop(*reversed(server.children))

    def _ready(self, child, children):
        url = child.wait_for(lambda: fact(child.text(), "http: "), "HTTP address", START_SECONDS)
        child.wait_for(lambda: answers(url + "/ready"), "readiness", START_SECONDS)
        return Server(url, children)


def fact(text, key):
    """The rest of the line of `text` that begins with `key`, once the line is whole."""
    m = re.search("^" + re.escape(key) + r"(\S+)\n", text, re.M)
    return m[1] if m else None


class Theirs:
    """llama.cpp's programs."""

    def __init__(self, processes, peer, threads):
        self.processes, self.peer, self.threads = processes, peer, threads

    def serve(self, gguf, *args):
        url = f"http://127.0.0.1:{(port := free_port())}"
        child = self.processes.start(self.peer.tool("llama-server"), "-m", gguf, "-t", self.threads, "-tb", self.threads, "--host",
                                     "127.0.0.1", "--port", port, *args)
        try:
            child.wait_for(lambda: answers(url + "/health"), "health", START_SECONDS)
        except MeasureError:
            self.processes.stop(child)
            raise
        return Server(url, [child])

    def stop(self, server):
        self.processes.stop(*server.children)

    def bench(self, gguf, *args):
        return parse_bench(self.processes.run(self.peer.tool("llama-bench"), "-m", gguf, "-t", self.threads, "-r", 1, "-o",
                                                        "json", *args))

    def workers(self, count):
        """The addresses of `count` rpc-servers, as --rpc takes them."""
        ports = [free_port() for _ in range(count)]
        children = [self.processes.start(self.peer.tool("ggml-rpc-server"), "-H", "127.0.0.1", "-p", port, "-t", self.threads)
                    for port in ports]
        for child, port in zip(children, ports):
            child.wait_for(lambda port=port: connects(port), "port", START_SECONDS)
        return ",".join(f"127.0.0.1:{port}" for port in ports)

    def batched(self, gguf, streams, prompt, tokens):
        """tokens/s of decode by number of streams."""
        context = max(streams) * (prompt + tokens + 32)
        return parse_batched(self.processes.run(
            self.peer.tool("llama-batched-bench"), "-m", gguf, "-t", self.threads, "-tb", self.threads, "-c", context, "-npp", prompt,
            "-ntg", tokens, "-npl", ",".join(map(str, streams)), "--output-format", "jsonl"))


def seconds_to_first_token(start):
    """Seconds from the start of a server to its first token, and the server."""
    began = time.monotonic()
    server = start()
    server.first_token()
    return time.monotonic() - began, server
