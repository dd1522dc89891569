"""Workers that compute on CUDA devices, and what they say where they cannot: the worker's own binary with the plugin that
emulates a device on the CPU. Kernels and host code are those of libswitchyard_cuda.so; only the hardware is not."""
import concurrent.futures
import os
import re

import pytest
import requests

import processes
from test_sameness import PROBES, ask

PLUGIN = processes.BIN.parent / "lib/libswitchyard_cuda_emulated.so"
DEVICE = ("--device", "cuda", "--cuda-plugin", PLUGIN)
MIXED = ("--allow-mixed-numerics",)
PROBE = {**PROBES[0], "max_tokens": 8}


def refused(*args, env=None, program="switchyard-expert-worker"):
    with processes.Process(program, "--model", processes.MODEL, "--listen", "127.0.0.1:0", *args, env=env) as process:
        status = process.process.wait(60)
        processes.wait_for(lambda: None in process.log)
        return status, "\n".join(filter(None, process.log))


def cluster(parts, *worker_args):
    return processes.Cluster(parts, router_args=MIXED, worker_args=(*DEVICE, *MIXED, "--metrics", "127.0.0.1:0", *worker_args))


def metric(url, name):
    lines = requests.get(url, timeout=10).text.splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if re.match(name + r"[ {]", line))


@pytest.fixture(scope="module")
def whole():
    with cluster(("0-127",)) as running:
        assert metric(running.workers[0].fact("metrics"), "switchyard_worker_device_uploads_total") == 4 * 128
        return [ask(running.url, body) for body in (PROBE, {**PROBES[2], "max_tokens": 8})]


def test_a_device_answers_as_the_cpu_does(whole, embedded):
    """Another class of arithmetic: not always the same bits, but close to the same probabilities."""
    tokens, log_probabilities = ask(embedded.url, PROBE)
    assert whole[0][0] == tokens
    assert whole[0][1] == pytest.approx(log_probabilities, abs=0.05)


@pytest.mark.parametrize("parts", [("0-40", "41-127")])
def test_however_experts_are_spread_over_devices(whole, parts):
    with cluster(parts) as running:
        assert [ask(running.url, body) for body in (PROBE, {**PROBES[2], "max_tokens": 8})] == whole


@pytest.mark.parametrize("memory", ["8MiB", "64KiB"])
def test_a_device_that_has_no_room_for_all(whole, memory):
    """A third of the experts at a time, and one."""
    with cluster(("0-127",), "--experts-memory", memory, "--pinned-memory", "12MiB") as running:
        assert [ask(running.url, body) for body in (PROBE, {**PROBES[2], "max_tokens": 8})] == whole
        worker = running.workers[0].fact("metrics")
        assert metric(worker, "switchyard_worker_memory_misses_total") > 0
        uploads, packed = (metric(worker, f"switchyard_worker_device_{name}_total") for name in ("uploads", "packs"))
        assert uploads > packed > 0, "what was packed once is copied again"
        assert metric(worker, "switchyard_worker_device_pinned_bytes") <= 12 << 20


def test_a_cluster_of_cpus_and_devices():
    with processes.worker("0-63", *DEVICE, *MIXED) as gpu, processes.worker("64-127", *MIXED) as cpu:
        with processes.router([gpu.fact("listening"), cpu.fact("listening")], *MIXED) as router:
            with processes.gateway([router.fact("listening")]) as gateway:
                url = gateway.fact("http")
                processes.wait_ready(url)
                body = {"messages": [{"role": "user", "content": "What is 37 + 48 - 5?"}], "temperature": 0}
                answer = requests.post(url + "/v1/chat/completions", json=body, timeout=300).json()
    assert "80" in answer["choices"][0]["message"]["content"]


def test_classes_do_not_mix_unasked():
    with processes.worker("0-63", *DEVICE) as gpu, processes.worker("64-127") as cpu:
        with processes.router([gpu.fact("listening"), cpu.fact("listening")]) as router:
            processes.wait_for(lambda: any("cuda-sm80-mma" in (line or "") for line in router.log))


@pytest.mark.parametrize("args, env, said", [
    (("--device", "tpu"), {}, '--device: "tpu" is no device; known: cpu, cuda, cuda:N, auto'),
    (("--device", "cuda", "--cuda-plugin", "/nowhere.so"), {}, "the CUDA plugin cannot be loaded: /nowhere.so"),
    (("--device", "cuda:3", "--cuda-plugin", PLUGIN), {}, "--device cuda:3: there is no device 3"),
    (DEVICE, {"SIMT_MAJOR": "7"}, "has compute capability 7.0; 8.0 (A100) or newer is needed"),
    ((*DEVICE, "--dtype", "float32"), {}, "--dtype float32: CUDA devices compute in bfloat16"),
    (("--pinned-memory", "1GiB"), {}, "--pinned-memory is of a GPU"),
    ((*DEVICE, "--experts-memory", "1KiB"), {}, "--experts-memory 1KiB: one expert takes"),
], ids=lambda v: str(v)[:40] if isinstance(v, str) else "")
def test_what_cannot_be_is_said(args, env, said):
    status, log = refused(*args, env=env)
    assert status != 0 and said in log, log


def test_too_little_memory_is_said():
    status, log = refused(*DEVICE, env={"SIMT_MEMORY_BYTES": str(270 << 20)})
    assert status != 0 and "--experts-memory" in log, log


def test_auto_takes_the_cpu_where_there_is_no_driver():
    with processes.worker("0-127", "--device", "auto", "--cuda-plugin", os.devnull) as worker:
        assert worker.fact("ready")
        processes.wait_for(lambda: any("experts are computed on the CPU" in (line or "") for line in worker.log))


@pytest.mark.parametrize("args, env", [((), {}), (("--pinned-memory", "12MiB"), {"SIMT_MEMORY_BYTES": str(264 << 20)})],
                         ids=["all experts fit", "a third fits"])
def test_one_process_with_experts_on_a_device(whole, args, env):
    with processes.serve(*DEVICE, "--backbone-device", "cpu", *args, env=env) as server:
        url = server.fact("http")
        processes.wait_ready(url)
        assert [ask(url, body) for body in (PROBE, {**PROBES[2], "max_tokens": 8})] == whole
        assert (metric(url + "/metrics", "switchyard_worker_memory_misses_total") > 0) == bool(env)


def test_a_device_that_is_lost_takes_its_worker_down_and_nobody_else(whole):
    spare = (*DEVICE, *MIXED)
    with processes.Process("switchyard-expert-worker", "--model", processes.MODEL, "--listen", "127.0.0.1:0", *spare,
                           env={"SIMT_LOST_AFTER": "20"}) as lost, processes.worker("0-127", *spare) as other:
        with processes.router([lost.fact("listening"), other.fact("listening")], *MIXED) as router:
            with processes.gateway([router.fact("listening")]) as gateway:
                url = gateway.fact("http")
                processes.wait_ready(url)
                for _ in range(8):  # each has its share of the rows
                    assert ask(url, PROBE) == whole[0]
                assert lost.process.wait(60) == 1
                assert "is lost" in "\n".join(filter(None, lost.log))
                assert ask(url, PROBE) == whole[0]


SHORT = {**PROBES[0], "max_tokens": 3}


@pytest.fixture(scope="module")
def router_on_a_device():
    """A router on a device before workers on devices: one class, nothing is mixed."""
    with processes.Cluster(("0-127",), router_args=DEVICE, worker_args=DEVICE) as running:
        yield running


def test_a_router_on_a_device_answers_as_the_cpu_does(router_on_a_device, embedded):
    tokens, log_probabilities = ask(embedded.url, SHORT)
    on_device = ask(router_on_a_device.url, SHORT)
    assert on_device[0] == tokens
    assert on_device[1] == pytest.approx(log_probabilities, abs=0.15)  # the bf16 of CPUs is as far from float32
    fingerprint = requests.post(router_on_a_device.url + "/v1/completions", json=SHORT, timeout=300).json()["system_fingerprint"]
    assert "mixed" not in fingerprint


def test_requests_beside_each_other_on_a_device(router_on_a_device):
    """Steps of several sequences in two micro-batches, prefixes that are shared: the same answers as alone."""
    bodies = [SHORT, {**PROBES[2], "max_tokens": 3}, SHORT]
    alone = [ask(router_on_a_device.url, body) for body in bodies[:2]]
    with concurrent.futures.ThreadPoolExecutor() as pool:
        together = list(pool.map(lambda body: ask(router_on_a_device.url, body), bodies))
    assert together == [*alone, alone[0]]


@pytest.mark.parametrize("args, env", [((), {}), (("--pinned-memory", "12MiB", "--kv-memory", "8MiB", "--max-batch-tokens", "256"),
                                                   {"SIMT_MEMORY_BYTES": str(368 << 20)})], ids=["all fits", "a part of the experts fits"])
def test_one_process_on_a_device(router_on_a_device, args, env):
    """However cut: the bits of a cluster whose router and workers are on devices."""
    with processes.serve(*DEVICE, *args, env=env) as server:
        url = server.fact("http")
        processes.wait_ready(url)
        assert ask(url, SHORT) == ask(router_on_a_device.url, SHORT)
        assert (metric(url + "/metrics", "switchyard_worker_memory_misses_total") > 0) == bool(env)
        # Experts that all have room are computed in the router's stream, without a frame, and counted all the same.
        assert (metric(url + "/metrics", "switchyard_worker_frames_total") > 0) == bool(env)
        assert metric(url + "/metrics", "switchyard_router_expert_rows_total") > 0


def test_what_one_process_cannot_do_on_a_device_is_said():
    with processes.serve(*DEVICE, "--kv-dtype", "int8") as server:
        status = server.process.wait(60)
        processes.wait_for(lambda: None in server.log)
        assert status == 2 and "or use --backbone-device cpu" in "\n".join(filter(None, server.log)), server.log


def test_a_router_on_a_device_before_workers_on_cpus(embedded):
    with processes.Cluster(("0-60", "61-127"), router_args=(*DEVICE, *MIXED), worker_args=MIXED) as running:
        assert ask(running.url, SHORT)[0] == ask(embedded.url, SHORT)[0]


@pytest.mark.parametrize("args, env, said", [
    ((*DEVICE, "--dtype", "float32"), {}, "--dtype float32: a GPU computes in bfloat16"),
    ((*DEVICE, "--kv-dtype", "int8"), {}, "--kv-dtype: on a GPU"),
    ((*DEVICE, "--routing-policy", "cumulative:p=0.9"), {}, "--routing-policy cumulative:p=0.9"),
    ((*DEVICE, "--lost-experts", "next-best"), {}, "--lost-experts next-best: on a GPU"),
    (("--device", "cuda:1", "--cuda-plugin", PLUGIN), {}, "--device cuda:1: there is no device 1"),
    (DEVICE, {"SIMT_MEMORY_BYTES": str(3 << 20)}, "the router's weights on emulated device (cuda:0)"),
    (DEVICE, {"SIMT_MEMORY_BYTES": str(90 << 20)}, "give less --max-batch-tokens"),
    ((*DEVICE, "--kv-memory", "1GiB"), {}, "--kv-memory 1.0 GiB: the model needs 1.00 GiB"),
], ids=lambda v: str(v)[-30:])
def test_what_a_router_cannot_do_on_a_device_is_said(args, env, said):
    status, log = refused("--workers", "127.0.0.1:1", *args, env=env, program="switchyard-router")
    assert status != 0 and said in log, log


def test_a_router_whose_device_is_lost_ends_and_another_goes_on(embedded):
    """Nobody notices: the gateway takes its requests to the other router, here one of the same class."""
    with processes.worker("0-127", *MIXED) as worker:
        at = worker.fact("listening")
        with processes.Process("switchyard-router", "--model", processes.MODEL, "--workers", at, "--listen", "127.0.0.1:0", *DEVICE, *MIXED,
                               env={"SIMT_LOST_AFTER": "12"}) as lost, processes.router([at], *DEVICE, *MIXED) as other:
            with processes.gateway([lost.fact("listening"), other.fact("listening")]) as gateway:
                url = gateway.fact("http")
                processes.wait_ready(url)
                body = {**PROBE, "max_tokens": 10}
                wanted = ask(embedded.url, body)[0]
                answers = []
                with concurrent.futures.ThreadPoolExecutor() as pool:
                    for _ in range(20):  # until it has had its share
                        answers += pool.map(lambda _: ask(url, body), range(4))
                        if lost.process.poll() is not None:
                            break
                assert all(answer == answers[0] for answer in answers)
                assert answers[0][0] == wanted
                assert lost.process.wait(60) == 1
                assert "is lost" in "\n".join(filter(None, lost.log))
