"""Gateway, router and workers as processes of their own, over TCP, Unix sockets and shared memory."""
import json
import pathlib
import signal
import socket
import subprocess

import openai
import pytest
import requests

import processes

PROMPTS = [{"prompt": [5 + i, 17, 300 + 7 * i, 41], "max_tokens": 24} for i in range(6)]


def complete(url, **body):
    answer = requests.post(url + "/v1/completions", json={"model": "tiny-r1", "temperature": 0, "ignore_eos": True, "logprobs": 2,
                                                          "return_token_ids": True, "return_routed_experts": True, **body}, timeout=120)
    assert answer.status_code == 200, answer.text
    choice = answer.json()["choices"][0]
    return choice["token_ids"], choice["logprobs"], choice["routed_experts"]


@pytest.mark.parametrize("dtype, wire", [("float32", ("--no-shared-memory",)), ("bfloat16", ("--no-shared-memory",)), ("bfloat16", ())])
def test_a_cluster_gives_the_same_bits_as_embedded(dtype, wire):
    with processes.serve("--dtype", dtype) as one, processes.Cluster(dtype=dtype, router_args=wire) as many:
        url = one.fact("http")
        processes.wait_ready(url)
        for body in PROMPTS:
            assert complete(url, **body) == complete(many.url, **body)


def test_started_in_any_order_and_readiness_says_what_is_missing(tmp_path):
    sockets = [f"unix:{tmp_path}/worker{i}" for i in range(2)]
    link = f"unix:{tmp_path}/router"
    with processes.gateway([link]) as gate:
        url = gate.fact("http")
        assert requests.get(url + "/health", timeout=5).status_code == 200
        assert requests.get(url + "/ready", timeout=5).status_code == 503
        with processes.router(sockets, listen=link) as route:
            route.fact("listening")
            processes.wait_for(lambda: "experts 0–127 have no live worker" in requests.get(url + "/ready", timeout=5).text)
            with processes.worker("0/2", listen=sockets[0]):
                processes.wait_for(lambda: "experts 64–127 have no live worker" in requests.get(url + "/ready", timeout=5).text)
                with processes.worker("1/2", listen=sockets[1]):
                    processes.wait_ready(url)
                    assert len(complete(url, prompt=[5, 6], max_tokens=3)[0]) == 3


def test_a_worker_maps_only_its_own_experts():
    with processes.worker("3") as small, processes.worker("0-127") as large:
        for process in (small, large):
            process.fact("listening")

        def mapped(process):
            return sum(int(line.split()[0].split("-")[1], 16) - int(line.split()[0].split("-")[0], 16)
                       for line in pathlib.Path(f"/proc/{process.process.pid}/maps").read_text().splitlines() if "safetensors" in line)

        assert 0 < mapped(small) < 4 * (3 * 192 * 32 * 2 + 8192)
        assert mapped(large) > 100 * mapped(small) / 2


def metric(process, name):
    """The sum of a metric's series; of one by NAME{LABEL="VALUE"."""
    lines = requests.get(process.fact("metrics"), timeout=10).text.splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith((name + "{", name + " ", name + ",", name + "}")))


def test_workers_serve_three_times_the_experts_that_memory_holds(embedded):
    memory = 1900 * 1024
    bounds = ("--experts-memory", "1900KiB", "--metrics", "127.0.0.1:0")
    with processes.Cluster(parts=("0/3", "1/3", "2/3"), worker_args=bounds, router_args=bounds[2:]) as small:
        for body in PROMPTS:
            assert complete(small.url, **body) == complete(embedded.url, **body)
        for worker in small.workers:
            assert metric(worker, "switchyard_worker_mapped_bytes") >= 3 * memory
            assert metric(worker, "switchyard_worker_resident_bytes") <= memory
            assert metric(worker, "switchyard_worker_memory_misses_total") > 0
            assert metric(worker, "switchyard_worker_memory_hits_total") > 0
            assert metric(worker, "switchyard_worker_demotions_total") > 0
            assert metric(worker, 'switchyard_worker_promotions_total{cause="prefetch"') > 0
        assert metric(small.router, "switchyard_router_prefetch_hints_total") > 0


def test_a_worker_without_experts_is_ready_and_holds_none():
    with processes.worker("none", "--metrics", "127.0.0.1:0", "--node", "n1") as idle:
        assert idle.fact("ready")
        assert metric(idle, "switchyard_worker_experts") == 0
        assert metric(idle, "switchyard_ready") == 1
    for flags, said in [(("--experts-memory", "0"), "--experts-memory"), (("--experts-memory", "4KiB"), "one expert takes"),
                        (("--load-rate", "fast"), "load-rate")]:
        with processes.worker("none", *flags) as wrong:
            assert wrong.process.wait(20) == 2
            processes.wait_for(lambda: any(said in line for line in wrong.log if line))


def test_drain_finishes_what_runs():
    with processes.Cluster() as cluster:
        client = openai.OpenAI(base_url=cluster.url + "/v1", api_key="none", max_retries=0)
        stream = client.completions.create(model="tiny-r1", prompt="Count", max_tokens=400, temperature=0, stream=True,
                                           extra_body={"ignore_eos": True, "return_token_ids": True})
        tokens = len(next(iter(stream)).choices[0].token_ids)
        cluster.gateway.process.send_signal(signal.SIGTERM)
        for chunk in stream:
            tokens += sum(len(c.token_ids or []) for c in chunk.choices)
        assert tokens == 400
        assert cluster.gateway.process.wait(30) == 0
        assert cluster.router.stop() == 0
        assert [w.stop() for w in cluster.workers] == [0, 0, 0]


def test_what_a_drain_cuts_off_is_counted_in_the_log():
    body = {"model": "tiny-r1", "prompt": [5], "max_tokens": 4000, "ignore_eos": True, "stream": True, "n": 4}
    for which, says in (("gateway", "requests cut off at the end of the drain: 1 (--drain-timeout 10ms)"),
                        ("router", "sequences cut off at the end of the drain: 4, requests that still waited: 0 (--drain-timeout 10ms)")):
        with processes.Cluster(**{which + "_args": ("--drain-timeout", "10ms")}) as cluster, \
             requests.post(cluster.url + "/v1/completions", json=body, stream=True, timeout=60) as stream:
            lines = stream.iter_lines()  # held: the client stays
            assert next(lines)
            process = getattr(cluster, which)
            assert process.stop() == 0
            processes.wait_for(lambda: None in process.log, 5)
            assert any(says in line for line in filter(None, process.log)), process.log


def test_a_worker_that_drains_serves_on_until_its_routers_can_do_without():
    with processes.Cluster(parts=("0-127", "0-127", "0-63"), worker_args=("--drain-timeout", "60s")) as cluster:
        first, second, third = cluster.workers
        assert first.stop() == 0, "others hold all of it"
        assert len(complete(cluster.url, **PROMPTS[0])[0]) == 24
        second.process.send_signal(signal.SIGTERM)
        assert second.process.wait(30) == 0, "the third takes over what only this one had"
        assert any("takes over" in line for line in filter(None, cluster.router.log))
        third.process.send_signal(signal.SIGTERM)
        with pytest.raises(subprocess.TimeoutExpired):
            third.process.wait(1)
        assert len(complete(cluster.url, **PROMPTS[0])[0]) == 24, "it alone holds all, though it drains"
        assert cluster.router.stop() == 0
        assert third.process.wait(20) == 0, "nobody is there to need it"


def test_serve_ends_with_zero_on_sigterm():
    with processes.serve() as server:
        server.fact("ready")
        assert len(complete(server.fact("http"), prompt=[5, 6], max_tokens=3)[0]) == 3
        assert server.stop() == 0


def test_a_killed_worker_fails_only_its_requests_and_may_come_back(tmp_path):
    sockets = [f"unix:{tmp_path}/w{i}" for i in range(2)]
    with processes.worker("0/2", listen=sockets[0]) as first, processes.worker("1/2", listen=sockets[1]) as second:
        first.fact("listening"), second.fact("listening")
        strict = ("--no-takeover", "--expert-patience", "0s")
        with processes.router(sockets, *strict) as route, processes.gateway([route.fact("listening")], "--router-wait", "0s") as gate:
            url = gate.fact("http")
            processes.wait_ready(url)
            before = complete(url, prompt=[5, 6, 7], max_tokens=8)
            body = {"model": "tiny-r1", "prompt": [5], "max_tokens": 4000, "ignore_eos": True, "stream": True}
            with requests.post(url + "/v1/completions", json=body, stream=True, timeout=60) as stream:
                lines = (line for line in stream.iter_lines() if line)
                assert "choices" in json.loads(next(lines).removeprefix(b"data: "))
                second.kill()
                *_, last, done = lines
            error = json.loads(last.removeprefix(b"data: "))["error"]
            assert (done, error["type"]) == (b"data: [DONE]", "server_error") and error["message"]
            processes.wait_for(lambda: requests.get(url + "/ready", timeout=5).status_code == 503)
            answer = requests.post(url + "/v1/completions", json={"model": "tiny-r1", "prompt": [5], "max_tokens": 3}, timeout=60)
            assert answer.status_code == 503, answer.text
            assert "64" in answer.json()["error"]["message"]
            pathlib.Path(sockets[1][5:]).unlink(missing_ok=True)
            with processes.worker("1/2", listen=sockets[1]):
                processes.wait_ready(url)
                assert complete(url, prompt=[5, 6, 7], max_tokens=8) == before


def test_mismatches_are_refused_and_name_both_sides():
    other = processes.ROOT / "tests/golden/models/deepseek-v3-tiny"
    with processes.worker("0-31", model=other) as wrong:
        with processes.router([wrong.fact("listening")]) as route:
            route.fact("listening")
            processes.wait_for(lambda: any("fingerprint" in (line or "") for line in route.log))
    with processes.worker("0-127", "--dtype", "float32") as wrong:
        with processes.router([wrong.fact("listening")]) as route:
            route.fact("listening")
            processes.wait_for(lambda: any("float32" in (line or "") and "bfloat16" in (line or "") for line in route.log))


@pytest.mark.parametrize("args, says", [
    (["switchyard-router", "--model", "/nowhere", "--workers", "127.0.0.1:1", "--listen", "127.0.0.1:0"], "/nowhere"),
    (["switchyard-router", "--model", processes.MODEL], "--workers"),
    (["switchyard-expert-worker", "--model", processes.MODEL, "--experts", "0-400", "--listen", "127.0.0.1:0"], "400"),
    (["switchyard-gateway", "--model", processes.MODEL, "--routers", "127.0.0.1:1", "--http", "nonsense"], "nonsense"),
    (["switchyard-gateway", "--model", processes.MODEL, "--routers", "127.0.0.1:1,127.0.0.1:1", "--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0"], "--routers names an address twice"),
    (["switchyard-gateway", "--model", processes.MODEL, "--routers", "127.0.0.1:1", "--router-tls-cert", "c.pem", "--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0"], "without --router-tls-key"),
    (["switchyard-router", "--model", "/nowhere", "--workers", "127.0.0.1:1", "--listen", "127.0.0.1:0", "--metrics", "unix:/tmp/m"], "--metrics unix:/tmp/m"),
    (["switchyard-router", "--model", "/nowhere", "--workers", "127.0.0.1:1,127.0.0.1:1", "--listen", "127.0.0.1:0"], "--workers names 127.0.0.1:1 twice"),
    (["switchyard-expert-worker", "--model", "/nowhere", "--experts", "0", "--listen", "127.0.0.1:0", "--metrics", "no-such-host.invalid:1"],
     "no-such-host.invalid:1"),
    (["switchyard", "serve", processes.MODEL, "--kv-memory", "900TiB", "--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0"], "900"),
    (["switchyard", "serve", processes.MODEL, "--dtype", "float8"], "bfloat16"),
    (["switchyard", "serve", processes.MODEL, "--isa", "avx9000"], "portable"),
])
def test_bad_flags_name_what_is_wrong(args, says):
    with processes.Process(*args) as process:
        status = process.process.wait(30)
        assert status not in (0, None) and status > 0, "must end with an error and not by a signal"
        processes.wait_for(lambda: None in process.log, 5)
        assert says in "\n".join(filter(None, process.log))


def said_by(*args):
    """Status and standard error of a command that fails."""
    done = subprocess.run(list(map(str, args)), capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)
    return done.returncode, done.stderr


def test_a_routing_policy_that_cannot_be_understood_is_the_command_lines_fault():
    name, model = "switchyard-router", processes.MODEL
    common = ("--model", model, "--workers", "127.0.0.1:1", "--listen", "127.0.0.1:0", "--routing-policy")
    status, error = said_by(processes.BIN / name, *common, "cumulative:p=2")
    assert (status, error.splitlines()[-1]) == (2, f"See {name} --help") and "--routing-policy" in error and 'p="2" is not a number from 0 to 1' in error
    status, error = said_by(processes.BIN / name, *common, "entropy:high=0.5,add=1,switch=2")
    assert status == 2 and "either add or switch, not both" in error
    status, error = said_by(processes.BIN / name, *common, "cumulative:p=0.5,min=5")
    assert status == 1 and f"{name}: --routing-policy cumulative: min=5, but the model chooses 4 experts a token" in error
    status, error = said_by(processes.BIN / "switchyard", "serve", model, "--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0", "--routing-policy",
                            "node-limited:max=17")
    assert status == 1 and "--routing-policy node-limited: max=17 of 16 nodes" in error


def test_experts_that_cannot_be_understood_are_the_command_lines_fault():
    name, model = "switchyard-expert-worker", processes.MODEL
    status, error = said_by(processes.BIN / name, "--model", model, "--experts", "foo")
    assert (status, error.splitlines()[-1]) == (2, f"See {name} --help") and f'{name}: --experts: "foo" is' in error
    status, error = said_by(processes.BIN / name, "--model", model, "--experts", "0-400", "--listen", "127.0.0.1:0")
    assert status == 1 and f'{name}: --experts "0-400": 400 is beyond' in error


@pytest.fixture
def taken():
    """An address where something listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield "127.0.0.1:%d" % server.getsockname()[1]


@pytest.mark.parametrize("program, flags", [("gateway", ("--http", "--grpc")), ("router", ("--listen", "--metrics")), ("expert-worker", ("--listen", "--metrics"))])
def test_a_port_that_is_taken_is_told_with_its_flag(program, flags, taken):
    others = {"gateway": ("--routers", "127.0.0.1:1"), "router": ("--workers", "127.0.0.1:1"), "expert-worker": ("--experts", "0")}[program]
    for flag in flags:
        at = [part for f in flags for part in (f, taken if f == flag else "127.0.0.1:0")]
        status, error = said_by(processes.BIN / f"switchyard-{program}", "--model", processes.MODEL, *others, *at)
        assert status == 1 and f"{flag} {taken}: cannot listen: Address already in use" in error


def test_quickstart_says_what_is_wrong_before_it_builds(taken):
    script = processes.ROOT / "scripts/quickstart"
    assert said_by(script, "--http") == (1, "✗ --http needs an address, such as --http 127.0.0.1:9000\n")
    for args in (("--http", taken), (f"--http={taken}",), ("--http", "127.0.0.1:0", "--grpc", taken)):
        status, error = said_by(script, "--no-serve", *args)
        assert status == 1 and f"{taken}: something listens there" in error
