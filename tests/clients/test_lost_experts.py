"""--lost-experts of whole processes: a worker that alone held experts is killed, and answers go on and say so."""
import requests

import processes

BODY = {"model": "tiny-r1", "max_tokens": 24, "temperature": 0, "ignore_eos": True, "return_token_ids": True}
PROMPT = [0, 2546, 57, 300, 12, 18, 2547, 2548]


def ask(url, **more):
    return requests.post(url + "/v1/completions", json={**BODY, "prompt": PROMPT, **more}, timeout=120)


def counters(url, name):
    lines = requests.get(url, timeout=10).text.splitlines()
    return {line.split('policy="')[1].split('"')[0]: float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name + "{")}


def test_answers_go_on_without_and_say_so():
    router_args = ("--no-takeover", "--lost-experts", "next-best", "--expert-patience", "50ms", "--metrics", "127.0.0.1:0")
    with processes.Cluster(("0-99", "100-127"), router_args=router_args) as cluster:
        whole = ask(cluster.url).json()["choices"][0]
        assert "degraded" not in whole
        cluster.workers[1].kill()
        processes.wait_for(lambda: ask(cluster.url).json()["choices"][0].get("degraded") == "next-best")
        answer = ask(cluster.url)
        assert answer.status_code == 200 and len(answer.json()["choices"][0]["token_ids"]) == 24
        stream = ask(cluster.url, stream=True).text.splitlines()
        assert '"degraded":"next-best"' in [line for line in stream if '"finish_reason":"length"' in line][0]
        assert requests.get(cluster.url + "/ready", timeout=10).status_code == 200
        assert counters(cluster.url + "/metrics", "switchyard_gateway_degraded_responses_total")["next-best"] >= 3
        rows = counters(cluster.router.fact("metrics"), "switchyard_router_degraded_rows_total")
        assert rows["next-best"] > 0 and rows["renormalise"] == 0
        engine = requests.get(cluster.url + "/admin/experts", timeout=10).json()["routers"][0]["engine"]
        assert engine["degraded_rows"] >= rows["next-best"] and engine["degraded_choices"] >= 3
