"""The same request gives the same tokens, whatever company it keeps and however the server is cut."""
import concurrent.futures

import pytest
import requests

import processes

PROBES = [{"prompt": [0, 2546, 57, 300, 12, 18 + i, 2547, 2548], "max_tokens": 40, "temperature": t, "seed": 11 + i}
          for i, t in enumerate((0, 0.8, 1.2))]
LONG = {"prompt": [(7 * i) % 2000 + 3 for i in range(700)], "max_tokens": 16, "temperature": 0}


def ask(url, body):
    answer = requests.post(url + "/v1/completions", json={"model": "tiny-r1", "ignore_eos": True, "logprobs": 1, "return_token_ids": True, **body}, timeout=300)
    assert answer.status_code == 200, answer.text
    choice = answer.json()["choices"][0]
    return choice["token_ids"], choice["logprobs"]["token_logprobs"]


@pytest.fixture(scope="module")
def alone(embedded):
    return [ask(embedded.url, body) for body in (*PROBES, LONG)]


def beside_others(url, others=32):
    noise = [{"prompt": [3 + (i * 37 + j) % 2500 for j in range(5 + 11 * i)], "max_tokens": 30 + i, "temperature": 1, "seed": i} for i in range(others)]
    with concurrent.futures.ThreadPoolExecutor(others + 4) as pool:
        futures = [pool.submit(ask, url, body) for body in noise]
        got = [pool.submit(ask, url, body) for body in (*PROBES, LONG)]
        [f.result() for f in futures]
        return [g.result() for g in got]


def test_beside_32_others(embedded, alone):
    assert beside_others(embedded.url) == alone


@pytest.mark.parametrize("flags", [
    ("--max-batch-tokens", 17),                  # prompts in small, odd pieces
    ("--threads", 1), ("--threads", 3),
    ("--kv-memory", "1MiB", "--max-model-len", 1024),  # preemption
    ("--max-running", 3),
    ("--prefix-cache", "off"),
], ids=lambda f: " ".join(map(str, f)))
def test_however_the_server_is_set_up(alone, flags):
    with processes.serve(*flags) as server:
        url = server.fact("http")
        processes.wait_ready(url)
        assert beside_others(url) == alone
        if "--kv-memory" in flags:
            preempted = [line for line in requests.get(url + "/metrics", timeout=10).text.splitlines()
                         if line.startswith("switchyard_router_preemptions_total")]
            assert preempted and float(preempted[0].rsplit(" ", 1)[1]) > 0, "the test must reach preemption"


@pytest.mark.parametrize("parts", [("0-127",), ("0-9,100-127", "10-99"), ("0/4", "1/4", "2/4", "3/4")], ids=lambda p: f"{len(p)} workers")
def test_however_the_experts_are_placed(alone, parts):
    with processes.Cluster(parts) as cluster:
        assert beside_others(cluster.url) == alone


def test_however_the_rows_travel(alone):
    with processes.Cluster(("0/2", "1/2"), router_args=("--no-shared-memory",)) as cluster:
        assert beside_others(cluster.url) == alone


def test_with_a_kv_cache_of_bytes():
    """Other tokens than with bf16, but the same ones in any company."""
    with processes.serve("--kv-dtype", "int8") as server:
        url = server.fact("http")
        processes.wait_ready(url)
        alone = [ask(url, body) for body in (*PROBES, LONG)]
        assert beside_others(url) == alone
        answer = requests.post(url + "/v1/completions", json={"prompt": [5], "max_tokens": 1}, timeout=60).json()
        assert answer["system_fingerprint"].endswith("+kv-int8")
    with processes.serve("--kv-dtype", "int8", "--kv-memory", "480KiB", "--max-model-len", 1024) as server:
        url = server.fact("http")
        processes.wait_ready(url)
        assert beside_others(url) == alone
        preempted = [line for line in requests.get(url + "/metrics", timeout=10).text.splitlines()
                     if line.startswith("switchyard_router_preemptions_total")]
        assert preempted and float(preempted[0].rsplit(" ", 1)[1]) > 0, "the test must reach preemption"
