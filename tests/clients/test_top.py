"""/admin/*, the gRPC Admin service and `switchyard top` over a cluster of processes."""
import fcntl
import importlib
import json
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import threading
import time

import grpc
import pytest
import requests

import processes

ASK = {"messages": [{"role": "user", "content": "What is 37 + 48 - 5?"}], "temperature": 0, "max_tokens": 24}
KEY = "key-of-the-tests"
BEARER = {"authorization": "Bearer " + KEY}


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    path = tmp_path_factory.mktemp("keys") / "keys"
    path.write_text(f"# the first one counts\n{KEY}\nanother-key\n")
    path.chmod(0o600)
    return path


@pytest.fixture(scope="module")
def watched(keys):
    """Two workers of which both hold experts 60 to 70."""
    with processes.Cluster(parts=("0-70", "60-127"), worker_args=("--node", "n1", "--zone", "z1"), gateway_args=("--api-key-file", keys)) as running:
        yield running


@pytest.fixture(scope="module")
def stubs(tmp_path_factory):
    out = tmp_path_factory.mktemp("protos")
    protos = processes.ROOT / "protos"
    subprocess.run([sys.executable, "-m", "grpc_tools.protoc", f"-I{protos}", f"--python_out={out}", f"--grpc_python_out={out}",
                    *(str(protos / "switchyard/v1" / name) for name in ("admin.proto", "placement.proto"))], check=True)
    sys.path.insert(0, str(out))
    yield importlib.import_module("switchyard.v1.admin_pb2"), importlib.import_module("switchyard.v1.admin_pb2_grpc")
    sys.path.remove(str(out))


def get(cluster, path):
    answer = requests.get(cluster.url + path, headers=BEARER, timeout=30)
    answer.raise_for_status()
    return answer.json()


def ask(cluster):
    requests.post(cluster.url + "/v1/chat/completions", json=ASK, headers=BEARER, timeout=120).raise_for_status()


class Load:
    """Requests one after the other, for as long as it stands."""

    def __init__(self, cluster):
        self.cluster, self.over, self.failed = cluster, threading.Event(), None
        self.thread = threading.Thread(target=self.run, daemon=True)

    def run(self):
        try:
            while not self.over.is_set():
                ask(self.cluster)
        except requests.RequestException as error:
            self.failed = error

    def __enter__(self):
        self.thread.start()

    def __exit__(self, *what):
        self.over.set()
        self.thread.join(120)
        assert self.failed is None


def top(cluster, *args, keys=None):
    key = ("--api-key-file", keys) if keys else ()
    command = [processes.BIN / "switchyard", "top", "--url", cluster.url, *key, *args]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=120, env={**os.environ, "COLUMNS": "150"})


def test_windows_move_under_load_and_empty_after_it(watched):
    def rows(window):
        router, = get(watched, "/admin/experts")["routers"]
        return sum(e["window_rows"][window] for e in router["experts"])

    before = sum(e["rows"] for e in get(watched, "/admin/experts")["routers"][0]["experts"])
    def counted():
        """One snapshot in which every layer and every worker has rows: a window may end amid the first step."""
        router, = get(watched, "/admin/experts")["routers"]
        parts = [layer["expert_imbalance"][1] for layer in router["layers"]] + [w["window_rows"][1] * w["latency_p50_s"] for w in router["workers"]]
        return router if rows(0) > 0 and all(parts) else None

    with Load(watched):
        router = processes.wait_for(counted)
    assert [w["seconds"] for w in router["windows"]] == [1, 10, 60]
    assert 0 < router["windows"][0]["spans"]
    assert sum(e["rows"] for e in router["experts"]) > before
    for expert in router["experts"]:
        assert len(expert["window_rows"]) == 3
        assert expert["window_rows"][0] <= expert["window_rows"][1] <= expert["window_rows"][2] <= expert["rows"]
    assert all(layer["expert_imbalance"][1] >= 1 for layer in router["layers"]) and len(router["layers"]) == 4
    assert all(1 <= layer["worker_imbalance"][1] <= 2 for layer in router["layers"])
    assert {len(e["workers"]) for e in router["experts"] if 60 <= e["expert"] <= 70} == {2}
    assert {len(e["workers"]) for e in router["experts"] if e["expert"] > 70} == {1}
    for worker in router["workers"]:
        assert worker["state"] == "up" and worker["node"] == "n1" and worker["zone"] == "z1"
        assert 0 < worker["latency_p50_s"] <= worker["latency_p99_s"] < 10
        assert worker["window_rows"][1] > 0 and not worker["ejected"] and worker["lost_parts"] == 0
    assert sum(w["window_rows"][2] for w in router["workers"]) >= 1
    processes.wait_for(lambda: rows(0) == 0)
    assert rows(2) > 0


def test_metrics_have_the_windows_imbalance():
    with processes.serve() as server:
        url = server.fact("http")
        processes.wait_ready(url)
        requests.post(url + "/v1/chat/completions", json=ASK, timeout=120).raise_for_status()
        lines = [line for line in requests.get(url + "/metrics", timeout=30).text.splitlines() if line.startswith("switchyard_router_expert_window_imbalance_ratio{")]
    assert len(lines) == 4 and all(float(line.split()[-1]) > 1 for line in lines)


def test_placement_is_what_the_workers_hold(watched):
    router, = get(watched, "/admin/placement")["routers"]
    assert not router["followed"] and router["epoch"] == 0
    inspected = subprocess.run([str(processes.BIN / "switchyard"), "inspect", str(processes.MODEL), "--json"], capture_output=True, text=True, timeout=60)
    document = router["document"]
    assert document["model_fingerprint"] == json.loads(inspected.stdout)["fingerprint"]
    addresses = [w.fact("listening") for w in watched.workers]
    assert [w["worker"] for w in document["workers"]] == addresses
    assert [w["holds"] for w in document["workers"]] == [[{"layers": "*", "experts": e}] for e in ("0-70", "60-127")]
    assert {w["node"] for w in document["workers"]} == {"n1"}


def test_the_admin_service_says_the_same(watched, stubs):
    pb, rpc = stubs
    with grpc.insecure_channel(watched.grpc) as channel:
        admin = rpc.AdminStub(channel)
        metadata = [("authorization", "Bearer " + KEY)]
        router, = admin.GetExperts(pb.GetExpertsRequest(), metadata=metadata, timeout=30).routers
        shown = get(watched, "/admin/experts")["routers"][0]
        assert router.router_id == shown["router_id"] and router.runs_on.isa == shown["runs_on"]["isa"]
        assert [(e.layer, e.expert, list(e.workers)) for e in router.experts] == [(e["layer"], e["expert"], e["workers"]) for e in shown["experts"]]
        assert not router.placement.HasField("document")
        placed, = admin.GetPlacement(pb.GetPlacementRequest(), metadata=metadata, timeout=30).routers
        document = get(watched, "/admin/placement")["routers"][0]["document"]
        assert [w.worker for w in placed.placement.document.workers] == [w["worker"] for w in document["workers"]]
        for wrong in ([], [("authorization", "Bearer wrong")], [("authorization", KEY)]):
            for call, request in ((admin.GetExperts, pb.GetExpertsRequest()), (admin.GetPlacement, pb.GetPlacementRequest())):
                with pytest.raises(grpc.RpcError) as error:
                    call(request, metadata=wrong, timeout=30)
                assert error.value.code() == grpc.StatusCode.UNAUTHENTICATED


def test_a_wrong_key_is_refused(watched, tmp_path):
    for path in ("/admin/experts", "/admin/placement"):
        for headers in ({}, {"authorization": "Bearer wrong"}):
            assert requests.get(watched.url + path, headers=headers, timeout=30).status_code == 401
    (tmp_path / "wrong").write_text("wrong\n")
    for args, keys in (((), None), ((), tmp_path / "wrong"), (("--once",), tmp_path / "wrong")):
        done = top(watched, *args, keys=keys)
        assert done.returncode == 1 and "401" in done.stderr, done.stderr
        assert done.stderr.startswith("switchyard top: ")


def test_top_once_shows_the_cluster(watched, keys):
    with Load(watched):
        processes.wait_for(lambda: get(watched, "/admin/experts")["routers"][0]["windows"][1]["spans"] > 1)
        done = top(watched, "--once", keys=keys)
        assert done.returncode == 0, done.stderr
        frame = json.loads(top(watched, "--once", "--json", "--window", "60s", keys=keys).stdout)
    lines = done.stdout.splitlines()
    assert all(len(line) <= 150 and line.isascii() and line.isprintable() for line in lines)
    for worker in watched.workers:
        row, = [line for line in lines if line.startswith(worker.fact("listening"))]
        assert " up " in row and "n1, z1" in row
    assert lines[0].startswith("switchyard top - tiny-r1 at http")
    assert "tokens/s" in done.stdout and "hottest  " in done.stdout
    assert [line.split()[0] for line in lines[lines.index(next(line for line in lines if line.startswith("experts"))) + 1:][:4]] == ["1", "2", "3", "4"]
    assert frame["gateway"]["tokens_per_s"] > 0 and frame["gateway"]["first_token_p99_s"] > 0
    assert frame["window_s"] == 60 and len(frame["experts"]) == 4 * 128
    assert [w["state"] for w in frame["workers"]] == ["up", "up"] and frame["missing"] == frame["lost"] == ""


def test_top_says_what_is_not_there(watched):
    done = subprocess.run([str(processes.BIN / "switchyard"), "top", "--once", "--url", "http://127.0.0.1:1"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "no server listens at http://127.0.0.1:1" in done.stderr
    done = top(watched, "--once", "--interval", "1ms")
    assert done.returncode == 2 and "--interval" in done.stderr


class Screen:
    """`switchyard top` in a terminal of its own."""

    def __init__(self, *args, columns=100, lines=30):
        self.terminal, inner = pty.openpty()
        self.resize(columns, lines)
        self.modes = termios.tcgetattr(inner)
        self.inner, self.text = inner, ""
        self.process = subprocess.Popen([str(processes.BIN / "switchyard"), "top", *map(str, args)], stdin=inner, stdout=inner, stderr=subprocess.PIPE, text=True)

    def resize(self, columns, lines):
        fcntl.ioctl(self.terminal, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def type(self, keys):
        os.write(self.terminal, keys.encode())

    def read(self):
        while select.select([self.terminal], [], [], 0.05)[0]:
            self.text += os.read(self.terminal, 65536).decode()
        return self.text

    def frame(self):
        """The last whole one."""
        return self.read().rsplit("\x1b[J", 1)[0].rsplit("\x1b[H", 1)[-1]

    def shows(self, what):
        return processes.wait_for(lambda: what in self.frame())

    def end(self):
        """The exit status, once everything that it changed is as it was."""
        status = self.process.wait(20)
        assert self.read().endswith("\x1b[?25h\x1b[?1049l"), "the screen is given back"
        assert termios.tcgetattr(self.inner) == self.modes, "the keys are"
        return status

    def __enter__(self):
        return self

    def __exit__(self, *what):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.process.stderr.close()
        os.close(self.terminal)
        os.close(self.inner)


def test_top_in_a_terminal(watched, keys):
    args = ("--url", watched.url, "--api-key-file", keys, "--interval", "200ms")
    with Screen(*args) as screen:
        screen.shows(watched.workers[1].fact("listening"))
        assert screen.text.startswith("\x1b[?1049h")
        screen.shows("rows over 10 s")
        assert screen.frame().count("\r\n") <= 29
        screen.type("w")
        screen.shows("rows over 60 s")
        screen.resize(100, 6)
        processes.wait_for(lambda: screen.frame().count("\r\n") == 5)
        screen.type("q")
        assert screen.end() == 0
    for how in (signal.SIGTERM, signal.SIGINT):
        with Screen(*args) as screen:
            screen.shows("worker")
            screen.process.send_signal(how)
            assert screen.end() == 0


def test_top_asks_again_where_the_connection_is_lost(watched):
    with processes.gateway([watched.router.fact("listening")]) as other:
        url = other.fact("http")
        processes.wait_ready(url)
        with Screen("--url", url, "--interval", "100ms", "--no-colour") as screen:
            screen.shows("hottest")
            other.kill()
            screen.shows("no answer: no server listens")
            assert watched.workers[0].fact("listening") in screen.frame(), "what was known last stays"
            again = processes.Process("switchyard-gateway", "--model", processes.MODEL, "--routers", watched.router.fact("listening"), "--http", url.split("//")[1], "--grpc", "127.0.0.1:0")
            with again:
                processes.wait_for(lambda: "hottest" in screen.frame() and "no answer" not in screen.frame())
            began = time.monotonic()
            screen.type("q")
            assert screen.end() == 0 and time.monotonic() - began < 15
