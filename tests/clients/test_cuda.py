"""Workers that compute on CUDA devices, and what they say where they cannot: the worker's own binary with the plugin that
emulates a device on the CPU. Kernels and host code are those of libswitchyard_cuda.so; only the hardware is not."""
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


def refused(*args, env=None):
    with processes.Process("switchyard-expert-worker", "--model", processes.MODEL, "--listen", "127.0.0.1:0", *args, env=env) as process:
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
def test_one_process_with_a_device(whole, args, env):
    with processes.serve(*DEVICE, *args, env=env) as server:
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
