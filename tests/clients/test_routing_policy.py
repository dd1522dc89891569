"""--routing-policy of whole processes: tokens, fingerprint, metrics and the trace of experts."""
import concurrent.futures

import pytest
import requests

import processes

PROMPT = [0, 2546, 57, 300, 12, 18, 2547, 2548]
# Those that look at a token alone.
POLICIES = ("cumulative:p=0.5", "entropy:low=0.8,few=1,high=0.9,add=next-best", "node-limited:max=1,nodes=2")


def ask(url, prompt=PROMPT, **more):
    body = {"model": "tiny-r1", "prompt": prompt, "max_tokens": 24, "temperature": 0, "ignore_eos": True, "logprobs": 1, "return_token_ids": True, **more}
    answer = requests.post(url + "/v1/completions", json=body, timeout=120)
    assert answer.status_code == 200, answer.text
    return answer.json()


def tokens(answer):
    return answer["choices"][0]["token_ids"], answer["choices"][0]["logprobs"]["token_logprobs"]


def beside_others(url):
    """The tokens of PROMPT while 12 others are generated."""
    with concurrent.futures.ThreadPoolExecutor(13) as pool:
        others = [pool.submit(ask, url, [3 + (i * 37 + j) % 2500 for j in range(5 + 9 * i)], max_tokens=20 + i) for i in range(12)]
        mine = pool.submit(ask, url)
        [o.result() for o in others]
        return tokens(mine.result())


def metric(url, name):
    """Values of a metric's series, by the text of their labels."""
    lines = requests.get(url + "/metrics", timeout=10).text.splitlines()
    return {line[len(name):].rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name + "{")}


@pytest.fixture(scope="module")
def gate(embedded):
    return ask(embedded.url)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_tokens_own_policy_gives_the_same_tokens_in_any_company_and_cluster(gate, policy):
    with processes.serve("--routing-policy", policy) as server:
        url = server.fact("http")
        processes.wait_ready(url)
        alone = ask(url)
        assert tokens(alone) != tokens(gate), "the policy must act"
        assert alone["system_fingerprint"].startswith(gate["system_fingerprint"] + "+" + policy.replace(",", ";"))
        assert "batch-dependent" not in alone["system_fingerprint"]
        assert beside_others(url) == tokens(alone)
        [rows], [changed] = (metric(url, f"switchyard_router_routing_{name}_total").values() for name in ("rows", "changed_rows"))
        assert 0 < changed <= rows
    with processes.Cluster(("0-9,100-127", "10-99"), router_args=("--routing-policy", policy)) as cluster:
        assert beside_others(cluster.url) == tokens(alone)
        assert ask(cluster.url)["system_fingerprint"] == alone["system_fingerprint"]


def test_a_share_of_one_changes_nothing(gate):
    with processes.serve("--routing-policy", "cumulative:p=1") as server:
        url = server.fact("http")
        processes.wait_ready(url)
        assert tokens(ask(url)) == tokens(gate)
        assert list(metric(url, "switchyard_router_routing_changed_rows_total").values()) == [0]


def test_capacity_says_that_it_depends_on_the_batch(gate):
    policy = "capacity:factor=1"
    with processes.serve("--routing-policy", policy) as server:
        url = server.fact("http")
        processes.wait_ready(url)
        beside_others(url)
        assert ask(url)["system_fingerprint"] == gate["system_fingerprint"] + f"+{policy}+batch-dependent"
        [router] = requests.get(url + "/admin/experts", timeout=10).json()["routers"]
        assert (router["routing_policy"], router["batch_dependent"]) == (policy, True)
        assert sum(metric(url, "switchyard_router_routing_overflow_rows_total").values()) > 0


def test_the_gate_says_so(embedded):
    [router] = requests.get(embedded.url + "/admin/experts", timeout=10).json()["routers"]
    assert (router["routing_policy"], router["batch_dependent"]) == ("gate", False)
    assert metric(embedded.url, "switchyard_router_routing_rows_total") == {}


def test_routed_experts_show_empty_places_and_the_fallback():
    with processes.serve("--routing-policy", "entropy:low=0.8,few=1,high=0.9,add=7") as server:
        url = server.fact("http")
        processes.wait_ready(url)
        entries = ask(url, return_routed_experts=True)["choices"][0]["routed_experts"]
        rows, weights = ([row for entry in entries for row in entry[key]] for key in ("experts", "weights"))
        assert {len(row) for row in rows} == {5}
        assert any(7 in row and -1 not in row for row in rows) and any(row[-1] == -1 for row in rows)
        for row, weight in zip(rows, weights):
            chosen = [e for e in row if e >= 0]
            assert chosen == sorted(set(chosen)) and row == chosen + [-1] * (5 - len(chosen))
            assert all((e < 0) == (w == 0) for e, w in zip(row, weight))
        dispatch = requests.get(url + "/admin/experts", timeout=10).json()["routers"][0]["dispatch"]
        assert dispatch["routing_fallbacks"] > 0
