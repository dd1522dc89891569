"""Workers that routers find in a real etcd or behind a name, with real processes that come, go and are killed."""
import signal
import subprocess

import pytest
import requests

import processes
from certificates import make_ca, make_certificate
from etcd import Etcd, metric, router

PROMPT = {"prompt": [5, 17, 300, 41], "max_tokens": 24}


def complete(url):
    answer = requests.post(url + "/v1/completions", json={"model": "tiny-r1", "temperature": 0, "ignore_eos": True,
                                                          "return_token_ids": True, **PROMPT}, timeout=120)
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]["token_ids"]


def test_workers_are_found_in_etcd_as_they_come_and_go(etcd):
    at = ("--etcd", etcd.url, "--etcd-prefix", "/test/one")
    strict = ("--no-takeover", "--expert-patience", "0s")
    with processes.worker("0/2", *at) as first, router(*at, *strict) as route, processes.gateway([route.fact("listening")]) as gate:
        url = gate.fact("http")
        first.fact("ready")
        with processes.worker("1/2", *at) as second:
            second.fact("ready")
            processes.wait_ready(url)
            tokens = complete(url)
            second.stop(signal.SIGKILL)
        processes.wait_for(lambda: "experts 64–127" in requests.get(url + "/ready", timeout=5).text)
        # The same experts at another port; the dead one's lease runs out.
        with processes.worker("1/2", "--metrics", "127.0.0.1:0", *at) as third:
            third.fact("ready")
            processes.wait_ready(url)
            assert complete(url) == tokens
            processes.wait_for(lambda: metric(route, "switchyard_router_known_workers") == 2)
            # Without etcd everything goes on.
            etcd.kill()
            processes.wait_for(lambda: metric(route, "switchyard_etcd_silent_seconds") > 0)
            processes.wait_for(lambda: metric(third, "switchyard_worker_announced") == 0)
            assert complete(url) == tokens
            etcd.start()
            processes.wait_for(lambda: metric(third, "switchyard_worker_announced") == 1)
            processes.wait_for(lambda: metric(route, "switchyard_etcd_silent_seconds") == 0)
            with processes.worker("1/2", *at) as fourth:
                fourth.fact("ready")
                processes.wait_for(lambda: metric(route, "switchyard_router_known_workers") == 3)
                assert third.stop() == 0
                processes.wait_for(lambda: metric(route, "switchyard_router_known_workers") == 2)
                processes.wait_ready(url)
                assert complete(url) == tokens


def test_etcd_over_tls_with_certificates_of_both_sides(tmp_path):
    ca, stranger = make_ca(tmp_path, "ca"), make_ca(tmp_path, "stranger")
    cert, key = make_certificate(tmp_path, "etcd", ca)
    etcd = Etcd((cert, key, ca))
    try:
        at = ("--etcd", etcd.url, "--etcd-ca", ca, "--etcd-cert", cert, "--etcd-key", key)
        with processes.worker("0/1", *at) as only, router(*at) as route, processes.gateway([route.fact("listening")]) as gate:
            only.fact("ready")
            processes.wait_ready(gate.fact("http"))
            assert len(complete(gate.fact("http"))) == PROMPT["max_tokens"]
            assert metric(route, "switchyard_etcd_silent_seconds") == 0
        for wrong in (("--etcd-ca", stranger, "--etcd-cert", cert, "--etcd-key", key), ("--etcd-ca", ca)):
            with router("--etcd", etcd.url, *wrong) as route:
                processes.wait_for(lambda: any("etcd https://" in line and "what was last known" in line for line in route.log if line))
                assert metric(route, "switchyard_router_known_workers") == 0
    finally:
        etcd.close()


def test_workers_are_found_behind_a_name():
    with processes.worker("0/1") as only:
        port = only.fact("listening").rsplit(":", 1)[1]
        with router("--workers", f"dns:localhost:{port}", "--dns-refresh", "200ms") as route, \
                processes.gateway(["dns:localhost:" + route.fact("listening").rsplit(":", 1)[1]]) as gate:
            processes.wait_ready(gate.fact("http"))
            assert len(complete(gate.fact("http"))) == PROMPT["max_tokens"]


@pytest.mark.parametrize("program, args, status, says", [
    ("switchyard-router", ["--listen", "127.0.0.1:0"], 2, "--workers is missing"),
    ("switchyard-router", ["--workers", "dns:nowhere"], 2, "dns:NAME:PORT"),
    ("switchyard-router", ["--etcd", "localhost:2379"], 2, "http://"),
    ("switchyard-expert-worker", ["--etcd", "http://127.0.0.1:1", "--listen", "0.0.0.0:0"], 2, "--advertise"),
    ("switchyard-expert-worker", ["--etcd", "http://127.0.0.1:1", "--advertise", "0.0.0.0:8200", "--listen", "127.0.0.1:0"], 2, "--advertise"),
    ("switchyard-expert-worker", ["--advertise", "10.0.0.3:8200", "--listen", "127.0.0.1:0"], 2, "--advertise says nothing without --etcd"),
])
def test_flags_that_do_not_fit_are_told_before_anything_is_loaded(program, args, status, says):
    done = subprocess.run([processes.BIN / program, "--model", processes.MODEL, *args], capture_output=True, text=True, timeout=60)
    assert done.returncode == status, done.stderr
    assert says in done.stderr
