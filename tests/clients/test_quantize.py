"""`switchyard quantize`: what it writes is served like any other model, and answers as well."""
import json
import subprocess

import pytest
import requests

import processes

TEXT = processes.ROOT / "tests/golden/texts/tiny-r1.txt"


def quantize(out, *args):
    command = [processes.BIN / "switchyard", "quantize", processes.MODEL, out, "--threads", "2", *args]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("scheme, args, least", [
    ("int8", ("--text-tokens", 2000, "--text", TEXT), 0.47),
    ("int4-awq", ("--text-tokens", 2000, "--text", TEXT, "--group-size", 32), 0.70),
], ids=("int8", "int4-awq"))
def test_a_quantised_model_is_served(tmp_path, scheme, args, least):
    out = tmp_path / "model"
    done = quantize(out, "--scheme", scheme, "--json", tmp_path / "report.json", *args)
    assert done.returncode == 0, done.stderr
    assert "perplexity" in done.stdout and "experts" in done.stdout
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["expert_bytes_after"] <= (1 - least) * report["expert_bytes_before"]
    assert abs(report["perplexity_after"] / report["perplexity_before"] - 1) < 0.03
    with processes.serve(model=out) as server:
        url = server.fact("http")
        processes.wait_ready(url)
        body = {"messages": [{"role": "user", "content": "What is 37 + 48 - 5?"}], "temperature": 0, "max_tokens": 120}
        answer = requests.post(url + "/v1/chat/completions", json=body, timeout=120).json()
        assert "80" in answer["choices"][0]["message"]["content"]


def test_what_cannot_be_done_is_said(tmp_path):
    done = quantize(tmp_path / "a", "--scheme", "int4-awq")
    assert done.returncode == 2 and "--text" in done.stderr
    assert quantize(tmp_path / "b", "--scheme", "int3").returncode == 2
