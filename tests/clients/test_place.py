"""`switchyard place`: from what a running server measured to a document that can be planned on."""
import json
import subprocess

import requests

import processes


def place(*args):
    command = [processes.BIN / "switchyard", "place", processes.MODEL, *args]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=120)


WORKERS = [arg for i in range(4) for arg in ("--worker", f"10.0.0.{i}:7000,node=n{i},zone=z{i % 2},memory=8MiB")]


def held(document):
    """(layer, expert) → workers, of a model whose layers 1 to 4 have 128 experts each."""
    out = {}

    def ids(text, first, last):
        for part in (f"{first}-{last}" if text == "*" else text).split(","):
            low, _, high = part.partition("-")
            yield from range(int(low), int(high or low) + 1)

    for worker in document["workers"]:
        for held_set in worker.get("holds", []):
            for layer in ids(held_set["layers"], 1, 4):
                for expert in ids(held_set["experts"], 0, 127):
                    out.setdefault((layer, expert), []).append(worker["worker"])
    return out


def test_what_a_server_measured_becomes_a_placement(tmp_path):
    with processes.serve(model=processes.MODEL) as server:
        url = server.fact("http")
        processes.wait_ready(url)
        body = {"messages": [{"role": "user", "content": "What is 37 + 48 - 5?"}], "temperature": 0, "max_tokens": 40}
        requests.post(url + "/v1/chat/completions", json=body, timeout=120).raise_for_status()
        (tmp_path / "load.json").write_text(requests.get(url + "/admin/experts", timeout=30).text)
        done = place("--url", url, *WORKERS, "--out", tmp_path / "first.json", "--json", tmp_path / "report.json")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "" and "utilisation" in done.stderr
    first = json.loads((tmp_path / "first.json").read_text())
    inspected = subprocess.run([str(processes.BIN / "switchyard"), "inspect", str(processes.MODEL), "--json"], capture_output=True, text=True, timeout=60)
    assert first["model_fingerprint"] == json.loads(inspected.stdout)["fingerprint"]
    assert first["epoch"] == 1 and [w["node"] for w in first["workers"]] == ["n0", "n1", "n2", "n3"]
    where = held(first)
    assert len(where) == 4 * 128
    assert sum(map(len, where.values())) > 4 * 128, "hot experts have replicas"
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["after"]["utilisation"] > 0.95
    assert report["after"]["most_bytes_of_a_worker"] <= 8 << 20

    again = place("--load", tmp_path / "load.json", "--previous", tmp_path / "first.json", "--memory", "8MiB")
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout) == first, "the same load moves nothing"
    assert "0 bytes in 0 replicas" in again.stderr

    # A worker less, and none is ever alone with an expert.
    fewer = place("--load", tmp_path / "load.json", "--previous", tmp_path / "first.json", *WORKERS[:6], "--memory", "16MiB",
                  "--min-replicas", "2", "--extra-memory", "0", "--workers", tmp_path / "none.json")
    assert fewer.returncode == 1 and "none.json" in fewer.stderr
    fewer = place("--load", tmp_path / "load.json", "--previous", tmp_path / "first.json", "--min-replicas", "2", "--extra-memory", "0",
                  *[a.replace("8MiB", "16MiB") for a in WORKERS[:6]])
    assert fewer.returncode == 0, fewer.stderr
    second = json.loads(fewer.stdout)
    assert second["epoch"] == 2
    assert all(len(workers) == 2 for workers in held(second).values())


def test_workers_that_a_server_names_bring_their_memory():
    with processes.Cluster(parts=("0/2", "1/2"), worker_args=("--experts-memory", "16MiB", "--node", "n")) as cluster:
        done = place("--url", cluster.url, "--extra-memory", "0")
        assert done.returncode == 0 and "2 on 1 nodes, 32.0 MiB for experts" in done.stderr, done.stderr
        assert {w["node"] for w in json.loads(done.stdout)["workers"]} == {"n"}
        assert json.loads(done.stdout)["epoch"] == 1
        said = place("--url", cluster.url, "--extra-memory", "0", "--memory", "12MiB")
        assert "24.0 MiB for experts" in said.stderr, "what is given wins"


def test_a_document_from_a_server_is_above_what_its_workers_heed(tmp_path):
    document = tmp_path / "placement.json"
    with processes.worker("0/2", "--node", "a") as one, processes.worker("1/2", "--node", "b") as other:
        workers = [w.fact("listening") for w in (one, other)]
        start = {"epoch": 41, "workers": [{"worker": w, "holds": [{"layers": "*", "experts": e}]} for w, e in zip(workers, ("0-63", "64-127"))]}
        document.write_text(json.dumps(start))
        with processes.router(workers, "--placement", document) as route, processes.gateway([route.fact("listening")]) as gate:
            url = gate.fact("http")
            processes.wait_ready(url)

            def heeded():
                seen = requests.get(url + "/admin/placement", timeout=30).json()["routers"][0]
                return seen["epoch_in_use"]

            processes.wait_for(lambda: heeded() == 41)
            for epoch in (42, 43):
                done = place("--url", url, "--extra-memory", "0.5", "--memory", "64MiB", "--out", document)
                assert done.returncode == 0, done.stderr
                assert json.loads(document.read_text())["epoch"] == epoch
                processes.wait_for(lambda: heeded() == epoch)


def test_without_load_experts_count_alike_and_widths_hold():
    done = place(*WORKERS, "--width", "2", "--extra-memory", "0")
    assert done.returncode == 0, done.stderr
    where = held(json.loads(done.stdout))
    for layer in range(1, 5):
        assert len({w for (l, _), workers in where.items() for w in workers if l == layer}) == 2
    assert "all experts count alike" in done.stderr
    auto = place(*WORKERS, "--width", "auto")
    assert auto.returncode == 0, auto.stderr


def test_what_cannot_be_planned_is_said(tmp_path):
    for args, status, says in [
        ((), 2, "no workers; give --worker"),
        (("--worker", "w:1"), 2, "w:1: its memory is not known"),
        (("--worker", "w:1,memory=1MiB"), 1, "are missing; add workers or memory"),
        (("--worker", "w:1,memory=1GiB", "--min-replicas", "2"), 1, "as many workers; there are 1"),
        (("--worker", "w:1,disk=1GiB"), 2, '--worker: w:1: unknown "disk"'),
        (("--worker", "w:1,memory=1GiB", "--width", "some"), 2, '--width: "some"'),
        (("--worker", "w:1,memory=1GiB", "--json", "-"), 2, "give --out"),
        (("--worker", "w:1,memory=1GiB", "--max-experts-per-node", "16"), 1, "7 nodes are missing"),
        (("--url", "http://127.0.0.1:1", "--memory", "1GiB"), 1, "127.0.0.1:1"),
    ]:
        done = place(*args)
        assert done.returncode == status and done.stdout == "", args
        assert done.stderr.startswith("switchyard place: ") and says in done.stderr, done.stderr
    (tmp_path / "old.json").write_text('{"workers": [{"worker": "w:1", "holds": [{"layers": "0", "experts": "*"}]}]}')
    done = place("--previous", tmp_path / "old.json", "--memory", "1GiB")
    assert done.returncode == 1 and "old.json: workers[0] (w:1): holds[0]: layers: \"0\" names 0, a layer without experts" in done.stderr
