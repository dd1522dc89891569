"""Routers that decide where experts lie, with real processes: by load, as workers come and go, alone and elected through etcd."""
import json
import signal
import subprocess

import pytest
import requests

import processes
from etcd import metric, router

PROMPT = {"prompt": [5, 17, 300, 41], "max_tokens": 24, "model": "tiny-r1", "temperature": 0, "ignore_eos": True, "return_token_ids": True}
LAYERS_WITH_EXPERTS = 4


def acts(process):
    return metric(process, "switchyard_router_balancer_state", state="acting") == 1


def complete(url):
    answer = requests.post(url + "/v1/completions", json=PROMPT, timeout=120)
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]["token_ids"]


def views(url):
    """What each router says of its experts."""
    return requests.get(url + "/admin/experts", timeout=5).json()["routers"]


def in_use(url, workers, least):
    """While requests run: the epoch that all routers use, once each of that many workers holds `least` experts."""
    complete(url)
    found = views(url)
    epochs = {router["placement"].get("epoch_in_use", 0) for router in found}
    held = sorted(int(worker.get("experts", 0)) for worker in found[0]["workers"] if worker["state"] == "up")
    settled = all(not int(router["placement"].get("moving", 0)) for router in found)
    return int(epochs.pop()) if len(epochs) == 1 and settled and len(held) == workers and held[0] >= least else 0


def test_experts_move_to_where_they_are_needed_and_tokens_stay():
    with processes.worker("0-126") as first, processes.worker("127") as second, processes.worker("none") as third:
        workers = [worker.fact("listening") for worker in (first, second, third)]
        with router("--workers", ",".join(workers), "--balance", "500ms") as route, processes.gateway([route.fact("listening")]) as gate:
            url = gate.fact("http")
            processes.wait_ready(url)
            tokens = complete(url)
            processes.wait_for(lambda: in_use(url, 3, least=30 * LAYERS_WITH_EXPERTS))
            assert complete(url) == tokens
            assert acts(route)
            processes.wait_for(lambda: metric(route, "switchyard_router_balancer_plans_total", result="kept") > 0)
            assert metric(route, "switchyard_router_balancer_plans_total", result="failed") == 0
            assert metric(route, "switchyard_router_balancer_silent_seconds") < 30
            assert metric(route, "switchyard_router_balancer_moved_bytes_total") > 0
            balancer, = (router["placement"]["balancer"] for router in views(url))
            assert balancer["state"] == "acting" and int(balancer["published"]) >= 1


def test_one_of_two_routers_balances_and_the_other_takes_over(etcd):
    at = ("--etcd", etcd.url)
    with processes.worker("0-99", *at) as first, processes.worker("100-127", *at) as second, \
            router(*at, "--balance", "500ms") as one, router(*at, "--balance", "500ms") as other:
        with processes.gateway([one.fact("listening"), other.fact("listening")]) as gate:
            url = gate.fact("http")
            processes.wait_ready(url)
            tokens = complete(url)
            processes.wait_for(lambda: in_use(url, 2, least=50 * LAYERS_WITH_EXPERTS))
            assert sorted([acts(one), acts(other)]) == [False, True]
            document = json.loads(etcd.get("/switchyard/placement"))
            assert document["epoch"] >= 1 and len(document["workers"]) == 2
            leader, standby = (one, other) if acts(one) else (other, one)
            leader.stop(signal.SIGKILL)
            processes.wait_for(lambda: acts(standby))
            with processes.worker("none", *at) as third:
                third.fact("ready")
                processes.wait_for(lambda: in_use(url, 3, least=30 * LAYERS_WITH_EXPERTS))
                assert complete(url) == tokens
            second.stop(signal.SIGKILL)
            processes.wait_for(lambda: in_use(url, 1, least=128 * LAYERS_WITH_EXPERTS))
            assert complete(url) == tokens
            assert first.process.poll() is None


def test_a_placement_in_etcd_is_followed_and_a_wrong_one_is_not(etcd):
    with processes.worker("0-63") as first, processes.worker("64-127") as second:
        workers = [first.fact("listening"), second.fact("listening")]

        def put(epoch, *experts):
            holds = [{"worker": worker, "holds": [{"layers": "*", "experts": held}]} for worker, held in zip(workers, experts)]
            etcd.put("/switchyard/placement", json.dumps({"epoch": epoch, "workers": holds}))

        with router("--workers", ",".join(workers), "--etcd", etcd.url, "--placement", "etcd") as route:
            def epoch(number):
                return lambda: metric(route, "switchyard_router_placement_epoch", state="used") == number

            route.fact("ready")
            put(4, "0-95", "96-127")
            processes.wait_for(epoch(4))
            put(4, "0-9", "10-127")  # changed, and nobody would know
            processes.wait_for(lambda: metric(route, "switchyard_router_placements_refused_total") == 1)
            assert metric(route, "switchyard_router_placement_source_ok") == 0
            assert any("epoch: 4 is not above 4" in line for line in route.log if line)
            put(0, "0-9", "10-127")
            processes.wait_for(lambda: metric(route, "switchyard_router_placements_refused_total") == 2)
            assert any("epoch: is 0; give 1 or more" in line for line in route.log if line)
            put(5, "0-9", "10-127")
            processes.wait_for(epoch(5))
            assert metric(route, "switchyard_router_placement_source_ok") == 1


def test_a_placement_without_an_epoch_is_refused_at_the_start(tmp_path):
    file = tmp_path / "placement.json"
    file.write_text('{"workers": [{"worker": "127.0.0.1:1", "holds": [{"layers": "*", "experts": "*"}]}]}')
    done = subprocess.run([processes.BIN / "switchyard-router", "--model", processes.MODEL, "--workers", "127.0.0.1:1", "--listen", "127.0.0.1:0",
                           "--placement", file], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and f"{file}: epoch: is 0; give 1 or more, higher with every change" in done.stderr


@pytest.mark.parametrize("args, status, says", [
    (["--balance", "1m", "--placement", "/tmp/p.json"], 2, "--balance and --placement"),
    (["--placement", "etcd"], 2, "--etcd URL"),
    (["--balance", "often"], 2, "--balance"),
    (["--balance", "1m", "--balance-width", "some"], 2, "--balance-width"),
    (["--balance-min-replicas", "2"], 2, "--balance-min-replicas says nothing without --balance"),
    (["--balance", "1m", "--balance-min-replicas", "0"], 2, "--balance-min-replicas"),
])
def test_flags_that_do_not_fit_are_told(args, status, says):
    done = subprocess.run([processes.BIN / "switchyard-router", "--model", processes.MODEL, "--workers", "127.0.0.1:1", "--listen", "127.0.0.1:0", *args],
                          capture_output=True, text=True, timeout=60)
    assert done.returncode == status, done.stderr
    assert says in done.stderr
