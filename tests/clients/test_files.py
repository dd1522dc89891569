"""What becomes of damaged files and full disks: a precise error, nothing half written, and nobody who only reads suffers."""
import contextlib
import json
import os
import re
import resource
import shutil
import signal
import subprocess

import pytest
import requests

import processes

SWITCHYARD = processes.BIN / "switchyard"


def run(*args, **more):
    return subprocess.run([str(a) for a in args], capture_output=True, text=True, timeout=120, **more)


def flip_a_bit(model, tensor):
    with open(model / "model.safetensors", "r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        begin = json.loads(file.read(length))[tensor]["data_offsets"][0]
        file.seek(8 + length + begin + 100)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))


def test_checksums_find_a_wrong_bit_in_whoever_holds_it(tmp_path):
    model = tmp_path / "model"
    shutil.copytree(processes.MODEL, model)
    assert run(SWITCHYARD, "checksums", model, "--check").returncode == 1, "there are none yet"
    assert run(SWITCHYARD, "checksums", model).returncode == 0
    whole = run(SWITCHYARD, "checksums", model, "--check")
    assert whole.returncode == 0 and "as they were" in whole.stdout
    names = [t for t in json.loads((model / "checksums.json").read_text())["tensors"] if re.search(r"\.experts\.7\.down_proj", t)]
    flip_a_bit(model, names[0])
    damaged = run(SWITCHYARD, "checksums", model, "--check")
    assert damaged.returncode == 1 and names[0] in damaged.stderr and "1 of" in damaged.stderr
    holds_it = run(processes.BIN / "switchyard-expert-worker", "--model", model, "--experts", "0-10", "--listen", "127.0.0.1:0")
    assert holds_it.returncode == 1 and names[0] in holds_it.stderr and "checksum" in holds_it.stderr
    with processes.worker("11-127", model=model) as holds_it_not:
        holds_it_not.fact("ready")
    with processes.worker("0-10", "--no-weight-check", model=model) as does_not_look:
        does_not_look.fact("ready")


@contextlib.contextmanager
def disk_of(size, path):
    path.mkdir()
    mounted = run("mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", path)
    if mounted.returncode:
        pytest.skip(f"no small disk: {mounted.stderr.strip()}")
    try:
        yield path
    finally:
        run("umount", path)


def quantize(out, **more):
    return run(SWITCHYARD, "quantize", processes.MODEL, out, "--scheme", "int8", "--threads", "1", **more)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting takes root")
def test_quantising_says_at_once_how_much_a_disk_lacks(tmp_path):
    with disk_of("4m", tmp_path / "disk") as disk:
        done = quantize(disk / "out")
        assert done.returncode == 1 and re.search(rf"{disk}/out: .* \d+ bytes are missing", done.stderr), done.stderr
        assert not list((disk / "out").iterdir())


def test_a_disk_that_becomes_full_leaves_no_half_file(tmp_path):
    def at_most_4_mib():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4 << 20, 4 << 20))

    done = quantize(tmp_path / "out", preexec_fn=at_most_4_mib)
    assert done.returncode == 1 and re.search(r"/out/model.*\.safetensors: cannot be written: .*\d+ of \d+ bytes are missing", done.stderr), done.stderr
    assert not list((tmp_path / "out").iterdir())


def test_a_server_whose_log_cannot_be_written_serves_on():
    args = ("serve", processes.MODEL, "--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0", "--threads", 1, "--log-level", "debug")
    with processes.Process("/bin/sh", "-c", 'exec "$@" 2>/dev/full', "sh", SWITCHYARD, *args) as server:
        url = server.fact("http")
        processes.wait_ready(url)
        for _ in range(3):
            answer = requests.post(url + "/v1/completions", json={"prompt": "What is 1 + 1?", "max_tokens": 4}, timeout=60)
            assert answer.status_code == 200
        assert requests.post(url + "/v1/completions", data="nonsense", timeout=60).status_code == 400
        assert server.stop() == 0
