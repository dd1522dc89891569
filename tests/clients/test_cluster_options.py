"""Options of a cluster that only whole processes show: TLS on every hop, mixed arithmetic, the check of weights."""
import json
import shutil
import struct
import subprocess
import time

import pytest
import requests

import processes
from certificates import make_ca, make_certificate


def ask(url, **more):
    answer = requests.post(url + "/v1/completions", json={"prompt": [5, 6], "max_tokens": 4, "temperature": 0, "ignore_eos": True,
                                                          "return_token_ids": True}, timeout=60, **more)
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]["token_ids"], answer.json()["system_fingerprint"]


def test_tls_on_every_hop_and_strangers_are_refused(tmp_path):
    ca, stranger = make_ca(tmp_path, "ca"), make_ca(tmp_path, "stranger")
    cert, key = make_certificate(tmp_path, "service", ca)
    wrong_cert, wrong_key = make_certificate(tmp_path, "wrong", stranger)
    tls = ("--tls-cert", cert, "--tls-key", key)
    mutual = (*tls, "--tls-ca", ca)
    upstream = ("--router-tls-ca", ca, "--router-tls-cert", cert, "--router-tls-key", key)
    with processes.worker("0-127", *mutual) as work, \
         processes.router([work.fact("listening")], *mutual) as route, \
         processes.gateway([route.fact("listening")], *tls, *upstream) as gate:
        url = gate.fact("http")
        assert url.startswith("https://")
        processes.wait_for(lambda: requests.get(url + "/ready", verify=ca, timeout=10).status_code == 200)
        assert len(ask(url, verify=ca)[0]) == 4
        with pytest.raises(requests.exceptions.SSLError):
            requests.get(url + "/ready", verify=stranger, timeout=10)
        # A gateway without a certificate, one with another CA's, and one that trusts another CA.
        for options in (("--router-tls-ca", ca), ("--router-tls-ca", ca, "--router-tls-cert", wrong_cert, "--router-tls-key", wrong_key),
                        ("--router-tls-ca", stranger, "--router-tls-cert", cert, "--router-tls-key", key), ()):
            with processes.gateway([route.fact("listening")], *options) as other:
                other_url = other.fact("http")
                processes.wait_for(lambda: "failed to connect" in requests.get(other_url + "/ready", timeout=10).text)
        # A router that the worker does not know.
        with processes.router([work.fact("listening")], "--tls-cert", wrong_cert, "--tls-key", wrong_key, "--tls-ca", ca) as other, \
             processes.gateway([other.fact("listening")], "--router-tls-ca", stranger, "--router-tls-cert", cert, "--router-tls-key", key) as gate:
            other_url = gate.fact("http")
            processes.wait_for(lambda: all(words in requests.get(other_url + "/ready", timeout=10).text for words in ("no live worker", "failed to connect")))
        assert len(ask(url, verify=ca)[0]) == 4


def test_a_worker_that_comes_late_is_found_within_a_second_or_two(tmp_path):
    took = []
    for i in range(3):
        where = f"unix:{tmp_path}/worker{i}"
        with processes.router([where]) as route, processes.gateway([route.fact("listening")]) as gate:
            url = gate.fact("http")
            processes.wait_for(lambda: "failed to connect" in requests.get(url + "/ready", timeout=10).text)
            with processes.worker("0-127", listen=where) as late:
                late.fact("listening")
                began = time.monotonic()
                processes.wait_ready(url)
                took.append(time.monotonic() - began)
    assert sorted(took)[1] < 2.5, took


def test_mixed_numerics_are_let_in_only_where_asked_and_show():
    kernels = subprocess.run([str(processes.BIN / "switchyard"), "version"], capture_output=True, text=True, check=True).stdout
    if "avx512bf16" not in kernels:
        pytest.skip("needs a CPU with two arithmetic classes")
    with processes.worker("0-127", "--isa", "portable") as work:
        address = work.fact("listening")
        with processes.router([address], "--isa", "avx512bf16") as route:
            route.fact("listening")
            processes.wait_for(lambda: any("refused" in (line or "") and "--allow-mixed-numerics" in line for line in route.log))
        with processes.router([address], "--isa", "avx512bf16", "--allow-mixed-numerics") as route:
            route.fact("ready")
            with processes.gateway([route.fact("listening")]) as gate:
                url = gate.fact("http")
                processes.wait_ready(url)
                tokens, fingerprint = ask(url)
                assert len(tokens) == 4 and fingerprint.endswith("+mixed")
    with processes.worker("0-127", "--isa", "avx512bf16") as work, processes.router([work.fact("listening")], "--isa", "avx512bf16") as route, \
         processes.gateway([route.fact("listening")]) as gate:
        url = gate.fact("http")
        processes.wait_ready(url)
        assert not ask(url)[1].endswith("+mixed")


@pytest.fixture(scope="module")
def with_nan(tmp_path_factory):
    """tiny-r1 with a NaN in the weights of expert 7 of layer 2."""
    folder = tmp_path_factory.mktemp("nan") / "tiny-r1"
    shutil.copytree(processes.MODEL, folder)
    with open(folder / "model.safetensors", "r+b") as file:
        length = struct.unpack("<Q", file.read(8))[0]
        header = json.loads(file.read(length))
        tensor = header["model.layers.2.mlp.experts.7.down_proj.weight"]
        assert tensor["dtype"] == "BF16"
        file.seek(8 + length + tensor["data_offsets"][0])
        file.write(b"\xc0\x7f")
    return folder


def test_a_worker_refuses_a_nan_unless_it_is_told_not_to_look(with_nan):
    with processes.worker("0-127", model=with_nan) as work:
        assert work.process.wait(60) == 1
        processes.wait_for(lambda: None in work.log)
        assert "model.layers.2.mlp.experts.7.down_proj.weight" in "\n".join(filter(None, work.log))
    with processes.worker("0-6", model=with_nan) as others:  # not its expert
        others.fact("ready")
    with processes.worker("0-127", "--no-weight-check", model=with_nan) as work, \
         processes.router([work.fact("listening")], "--no-weight-check", model=with_nan) as route, \
         processes.gateway([route.fact("listening")], model=with_nan) as gate:
        processes.wait_ready(gate.fact("http"))


def test_serve_refuses_a_nan_unless_it_is_told_not_to_look(with_nan):
    with processes.serve(model=with_nan) as server:
        assert server.process.wait(60) == 1
        processes.wait_for(lambda: None in server.log)
        assert "experts.7.down_proj" in "\n".join(filter(None, server.log))
    with processes.serve("--no-weight-check", model=with_nan) as server:
        server.fact("ready")


@pytest.mark.parametrize("args, says", [(("--kv-memory", "900TiB"), "--kv-memory"), (("--max-model-len", 2_000_000), "--max-model-len"),
                                        (("--api-key-file", "/nowhere"), "/nowhere")])
def test_serve_says_what_is_wrong_before_it_reads_all_weights(with_nan, args, says):
    with processes.serve(*args, model=with_nan) as server:
        assert server.process.wait(60) == 1
        processes.wait_for(lambda: None in server.log)
        log = "\n".join(filter(None, server.log))
        assert says in log and "down_proj" not in log
