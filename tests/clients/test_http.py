"""HTTP as hostile and clumsy clients speak it; keys; limits; metrics read by Prometheus' own tools."""
import json
import shutil
import socket
import subprocess
import threading

import pytest
import requests

import processes


def address(server):
    host, port = server.url.removeprefix("http://").rsplit(":", 1)
    return host, int(port)


def answers(server):
    body = {"model": "tiny-r1", "prompt": [5, 6], "max_tokens": 2}
    return requests.post(server.url + "/v1/completions", json=body, timeout=30).status_code == 200


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"x"', b"nul", b"\xff\xfe", b'{"prompt":' + b"[" * 5000, b'{"model":"tiny-r1"}',
                                  b'{"model":"tiny-r1","prompt":{}}', b'{"model":"tiny-r1","prompt":"a","max_tokens":"many"}',
                                  b'{"model":"tiny-r1","prompt":"a","n":1e99}', b'{"model":7,"prompt":"a"}'])
def test_broken_bodies_are_a_400_with_an_error_object(embedded, body):
    answer = requests.post(embedded.url + "/v1/completions", data=body, headers={"Content-Type": "application/json"}, timeout=30)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["message"] and error["type"] == "invalid_request_error"


def test_oversized_body_is_a_413(embedded):
    with socket.create_connection(address(embedded)) as s:
        s.settimeout(30)
        s.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 99999999999\r\n\r\n")
        assert b" 413 " in s.recv(4096)
    assert answers(embedded)


def test_unknown_paths_and_methods(embedded):
    assert requests.get(embedded.url + "/nothing", timeout=30).status_code == 404
    for method, path, allow in (("GET", "/v1/completions", "POST"), ("POST", "/v1/models", "GET, HEAD"), ("DELETE", "/metrics", "GET, HEAD")):
        answer = requests.request(method, embedded.url + path, timeout=30)
        assert (answer.status_code, answer.headers["allow"]) == (405, allow)
        assert allow in answer.json()["error"]["message"]


def test_head_before_its_body_is_as_get(embedded):
    for path, status in (("/health", b" 200 "), ("/v1/completions", b" 405 ")):
        with socket.create_connection(address(embedded)) as s:
            s.settimeout(30)
            s.sendall(b"HEAD %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 5\r\n\r\n12" % path.encode())
            if status == b" 200 ":
                s.sendall(b"345")
            answer = b""
            while more := s.recv(4096):
                answer += more
            assert status in answer and answer.endswith(b"\r\n\r\n")


def metric(server, name):
    text = requests.get(server.url + "/metrics", timeout=10).text
    return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(name))


def ended(server):
    """How many choices have been cancelled, and how many ended at their length."""
    return [metric(server, f'switchyard_router_requests_total{{finish="{finish}"') for finish in ("cancelled", "length")]


def test_a_client_that_leaves_stops_its_request(embedded):
    body = json.dumps({"model": "tiny-r1", "prompt": [5], "max_tokens": 4000, "ignore_eos": True, "stream": True}).encode()
    processes.wait_for(lambda: metric(embedded, "switchyard_router_running_sequences") == 0)
    cancelled, length = ended(embedded)
    for _ in range(8):
        with socket.create_connection(address(embedded)) as s:
            s.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
            s.recv(100)
    processes.wait_for(lambda: ended(embedded)[0] >= cancelled + 8)
    assert ended(embedded) == [cancelled + 8, length]


def test_a_choice_that_met_its_stop_string_is_computed_no_further(embedded):
    body = {"model": "tiny-r1", "prompt": "What is 12 + 3", "n": 2, "seed": 5, "temperature": 1.5, "max_tokens": 600, "ignore_eos": True,
            "return_token_ids": True}

    def ask(**more):
        choices = requests.post(embedded.url + "/v1/completions", json={**body, **more}, timeout=120).json()["choices"]
        return sorted(choices, key=lambda c: c["index"])

    def counts():
        return [metric(embedded, "switchyard_router_output_tokens_total"), *ended(embedded)]

    ends, goes_on = (c["text"] for c in ask())
    # Text of the one choice, early, that the other never says.
    stop = next(ends[i:i + n] for n in range(2, 30) for i in range(30, 60) if ends[i:i + n] not in goes_on)
    processes.wait_for(lambda: metric(embedded, "switchyard_router_running_sequences") == 0)
    before = counts()
    one, two = ask(stop=[stop])
    assert (one["finish_reason"], one["stop_reason"], one["text"]) == ("stop", stop, ends[:ends.index(stop)])
    assert (two["finish_reason"], two["text"]) == ("length", goes_on)
    processes.wait_for(lambda: metric(embedded, "switchyard_router_running_sequences") == 0)
    tokens, cancelled, length = (now - then for now, then in zip(counts(), before))
    assert (cancelled, length) == (1, 1)
    # It ran until its stop string, and for the few steps that the cancel took.
    assert tokens < 600 + len(one["token_ids"]) + 200


def test_a_client_that_stops_reading_hurts_nobody_and_is_cut_off(embedded):
    cut_before = metric(embedded, "switchyard_gateway_clients_cut_off_total")
    # Far more bytes than the bounded buffer and the sockets' own together take.
    body = json.dumps({"model": "tiny-r1", "prompt": [5], "max_tokens": 3000, "ignore_eos": True, "stream": True, "n": 8, "logprobs": 20}).encode()
    with socket.socket() as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        s.connect(address(embedded))
        s.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        assert all(answers(embedded) for _ in range(10))
        processes.wait_for(lambda: metric(embedded, "switchyard_gateway_clients_cut_off_total") > cut_before)
        processes.wait_for(lambda: metric(embedded, "switchyard_router_running_sequences") == 0)


def test_pipelined_requests_and_keep_alive(embedded):
    with socket.create_connection(address(embedded)) as s:
        s.settimeout(30)
        s.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\nGET /v1/models HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        got = b""
        while chunk := s.recv(4096):
            got += chunk
    assert got.count(b"HTTP/1.1 200") == 2 and b"tiny-r1" in got


def test_request_ids_are_taken_over_or_made(embedded):
    mine = requests.get(embedded.url + "/v1/models", headers={"x-request-id": "abc-123"}, timeout=30)
    assert mine.headers["x-request-id"] == "abc-123"
    made = requests.get(embedded.url + "/v1/models", headers={"x-request-id": "bad id\t"}, timeout=30)
    assert made.headers["x-request-id"] and made.headers["x-request-id"] != "bad id\t"


def test_keys(tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("# the team's\nfirst-key\nsecond-key\n")
    keys.chmod(0o600)
    with processes.serve("--api-key-file", keys) as server:
        server.url = server.fact("http")
        processes.wait_ready(server.url)
        for header, status in ((None, 401), ("Bearer wrong", 401), ("Bearer first-key", 200), ("Bearer second-key", 200)):
            headers = {"Authorization": header} if header else {}
            assert requests.get(server.url + "/v1/models", headers=headers, timeout=30).status_code == status
        assert requests.get(server.url + "/health", timeout=30).status_code == 200
        # Refused without its body, which never comes.
        for head, status in (("POST /v1/completions", b"401"), ("POST /nothing", b"404"), ("PUT /v1/completions", b"405")):
            with socket.create_connection(address(server)) as s:
                s.sendall(f"{head} HTTP/1.1\r\nHost: x\r\nContent-Length: 4000000\r\n\r\n".encode())
                answer = b"".join(iter(lambda: s.recv(4096), b""))
                assert answer.split(b" ")[1] == status and b"x-request-id" in answer
        assert not any("first-key" in (line or "") for line in server.log)


def test_a_full_queue_is_a_429_with_retry_after():
    with processes.serve("--max-queue", 1, "--max-running", 1) as server:
        server.url = server.fact("http")
        processes.wait_ready(server.url)
        body = {"model": "tiny-r1", "prompt": [5], "max_tokens": 600, "ignore_eos": True}
        got, lock = [], threading.Lock()

        def ask():
            answer = requests.post(server.url + "/v1/completions", json=body, timeout=120)
            with lock:
                got.append(answer)

        threads = [threading.Thread(target=ask) for _ in range(8)]
        [t.start() for t in threads]
        [t.join() for t in threads]
        refused = [a for a in got if a.status_code == 429]
        assert refused and len(refused) < 8
        assert all(a.status_code in (200, 429) for a in got)
        assert all(int(a.headers["Retry-After"]) >= 1 for a in refused)


def test_tls(tmp_path):
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2", "-subj", "/CN=localhost",
                    "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", key, "-out", cert], check=True, capture_output=True)
    with processes.serve("--tls-cert", cert, "--tls-key", key) as server:
        url = server.fact("http")
        assert url.startswith("https://")
        server.fact("ready")
        assert requests.get(url + "/ready", verify=str(cert), timeout=30).status_code == 200


def test_metrics_pass_promtool_and_a_real_prometheus_scrapes_them(embedded, cluster, tmp_path):
    assert answers(embedded) and answers(cluster)
    # Page by page, the services that it tells of.
    pages = {embedded.url + "/metrics": ("gateway", "router", "expert-worker"), cluster.url + "/metrics": ("gateway",),
             cluster.router.fact("metrics"): ("router",), **{w.fact("metrics"): ("expert-worker",) for w in cluster.workers}}
    for url, services in pages.items():
        text = requests.get(url, timeout=10).text
        if promtool := shutil.which("promtool"):
            check = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, text=True, timeout=60)
            assert check.returncode == 0, url + ": " + check.stdout + check.stderr
        for service in ("gateway", "router", "expert-worker"):
            assert (f'service="{service}"' in text) == (service in services), url
    prometheus = shutil.which("prometheus")
    assert prometheus, "Debian's prometheus is among the test packages"
    config = tmp_path / "prometheus.yml"
    config.write_text(json.dumps({"scrape_configs": [{"job_name": "switchyard", "scrape_interval": "1s", "scrape_timeout": "1s",
                                                      "static_configs": [{"targets": [url.split("/")[2] for url in pages]}]}]}))
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    with subprocess.Popen([prometheus, f"--config.file={config}", f"--storage.tsdb.path={tmp_path}/data", f"--web.listen-address=127.0.0.1:{port}"],
                          stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as running:
        try:
            def scraped():
                try:
                    found = requests.get(f"http://127.0.0.1:{port}/api/v1/query", params={"query": 'up{job="switchyard"}'}, timeout=5)
                    return sum(r["value"][1] == "1" for r in found.json()["data"]["result"]) == len(pages)
                except (requests.ConnectionError, ValueError):  # not up yet, or still loading
                    return False
            processes.wait_for(scraped)
        finally:
            running.terminate()


def test_admin_experts_tells_rows_and_workers(embedded):
    answers(embedded)
    table = requests.get(embedded.url + "/admin/experts", timeout=30).json()
    router = table["routers"][0]
    assert len(router["experts"]) == 4 * 128
    assert sum(e["rows"] for e in router["experts"]) > 0
