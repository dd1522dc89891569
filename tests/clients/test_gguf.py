"""A GGUF file is served as the directory that it was made of: the same text, templates, ends and greedy tokens."""
import json
import shutil
import subprocess
import sys

import pytest
import requests

import processes

CONVERTER = processes.ROOT / "tools/make_tiny_model/to_gguf.py"
GOLDENS = processes.ROOT / "tests/golden/models"
PROMPTS = [[0, 2546, 57, 300, 12, 18, 2547, 2548], [5, 9, 1200, 77, 2001, 3, 44], [(7 * i) % 2000 + 3 for i in range(90)]]
FAMILIES = ["deepseek-v2-tiny", "deepseek-v3-tiny", "gpt-oss-tiny", "mixtral-tiny", "olmoe-tiny", "qwen3-moe-tiny"]


def convert(directory, out, *options):
    subprocess.run([sys.executable, CONVERTER, *map(str, options), directory, out], check=True, stdout=subprocess.DEVNULL)
    return out


def greedy(url, prompt, tokens=12):
    body = {"prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True, "return_token_ids": True}
    answer = requests.post(url + "/v1/completions", json=body, timeout=300)
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]["token_ids"]


def served(model, *flags):
    return processes.serve(*flags, model=model)


def answers(model, *flags):
    with served(model, *flags) as server:
        url = server.fact("http")
        processes.wait_ready(url)
        return [greedy(url, prompt) for prompt in PROMPTS]


def servable(name, directory):
    """A golden model with tiny-r1's tokenizer, and without what GGUF cannot say."""
    shutil.copytree(GOLDENS / name, directory)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(processes.MODEL / file, directory)
    config = json.loads((directory / "config.json").read_text())
    config.pop("swiglu_limit", None)
    (directory / "config.json").write_text(json.dumps(config))
    return directory


@pytest.fixture(scope="module")
def tiny_r1(tmp_path_factory):
    return convert(processes.MODEL, tmp_path_factory.mktemp("gguf") / "tiny-r1.gguf")


# In float32 the forms of the weights differ in the last bits only; in bfloat16 a random model's logits lie too close for that.
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_gives_the_tokens_of_its_directory(name, tmp_path):
    directory = servable(name, tmp_path / name)
    want = answers(directory, "--dtype", "float32")
    assert answers(convert(directory, tmp_path / "bf16.gguf"), "--dtype", "float32") == want
    assert answers(convert(directory, tmp_path / "f32.gguf", "--type", "f32"), "--dtype", "float32") == want


def test_a_chat_is_the_same_and_so_are_its_tokens(embedded, tiny_r1):
    chat = {"messages": [{"role": "user", "content": "What is 37 + 48 - 5?"}], "return_token_ids": True}
    want = requests.post(embedded.url + "/v1/chat/completions", json=chat, timeout=300).json()
    with served(tiny_r1) as server:
        url = server.fact("http")
        processes.wait_ready(url)
        assert [m["id"] for m in requests.get(url + "/v1/models", timeout=10).json()["data"]] == ["tiny-r1"]
        got = requests.post(url + "/v1/chat/completions", json=chat, timeout=300).json()
        assert got["choices"][0]["message"] == want["choices"][0]["message"]
        assert got["choices"][0]["finish_reason"] == "stop"
        assert got["usage"] == want["usage"]
        for prompt in PROMPTS:
            assert greedy(url, prompt, 24) == greedy(embedded.url, prompt, 24)


def test_a_cluster_of_services_reads_the_file(embedded, tiny_r1):
    with processes.Cluster(model=tiny_r1) as cluster:
        for prompt in PROMPTS:
            assert greedy(cluster.url, prompt, 24) == greedy(embedded.url, prompt, 24)


@pytest.mark.parametrize("kind", ["f16", "q8_0", "q4_0"])
def test_a_quantised_model_still_answers(kind, tmp_path):
    chat = {"messages": [{"role": "user", "content": "What is 37 + 48 - 5?"}]}
    with served(convert(processes.MODEL, tmp_path / f"{kind}.gguf", "--type", kind)) as server:
        url = server.fact("http")
        processes.wait_ready(url)
        choice = requests.post(url + "/v1/chat/completions", json=chat, timeout=300).json()["choices"][0]
    assert choice["finish_reason"] == "stop"
    assert kind == "q4_0" or "80" in choice["message"]["content"]


# What blocks of MXFP4 stand for is met exactly by blocks made of it, so both files hold the same weights, side by side and in blocks.
def test_mxfp4_experts_give_the_tokens_of_the_checkpoint(tmp_path):
    directory, floats, mxfp4 = servable("gpt-oss-tiny", tmp_path / "gpt-oss"), tmp_path / "floats", tmp_path / "mxfp4"
    quantise = [sys.executable, CONVERTER.parent / "to_quantised.py", "--scheme", "mxfp4", "--float", floats, directory, mxfp4]
    subprocess.run(list(map(str, quantise)), check=True, stdout=subprocess.DEVNULL)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        for made in (floats, mxfp4):
            shutil.copy(processes.MODEL / file, made)
    assert answers(convert(floats, tmp_path / "mxfp4.gguf", "--type", "mxfp4")) == answers(mxfp4)


# The same of every matrix but the two of tokens, which quantised checkpoints leave alone.
@pytest.mark.parametrize(("kind", "scheme"), [("q8_0", "int8"), ("q4_0", "int4-q4_0")])
def test_a_file_gives_the_tokens_of_the_same_integers_in_safetensors(kind, scheme, tmp_path):
    directory, floats, quantised = servable("olmoe-tiny", tmp_path / "olmoe"), tmp_path / "floats", tmp_path / scheme
    subprocess.run([sys.executable, CONVERTER.parent / "to_quantised.py", "--scheme", scheme, "--group", "32", "--scales", "F16",
                    "--float", floats, directory, quantised], check=True, stdout=subprocess.DEVNULL)
    file = convert(floats, tmp_path / f"{kind}.gguf", "--type", kind, "--keep", "token_embd.", "--keep", "output.")
    want = answers(quantised)
    assert answers(file) == want
    assert want != answers(directory)  # or the rounding would not show


def test_inspect_shows_dtypes_and_bytes(tiny_r1, tmp_path):
    q8_0 = convert(processes.MODEL, tmp_path / "q8_0.gguf", "--type", "q8_0")
    done = subprocess.run([processes.BIN / "switchyard", "inspect", "--json", q8_0], capture_output=True, text=True, timeout=60, check=True)
    report = json.loads(done.stdout)
    experts = report["memory"]["experts"]
    # 128 experts in 4 layers of three matrices of 192 × 32 values, in blocks of 34 bytes for 32.
    assert experts == {"Q8_0": 128 * 4 * 3 * 192 * 32 // 32 * 34, "total": experts["total"]}
    assert report["architecture"] == "DeepseekV3ForCausalLM"
    assert report["tokenizer"]["chat_templates"] == ["default"]


def test_a_broken_file_is_named(tiny_r1, tmp_path):
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(tiny_r1.read_bytes()[:3_000_000])
    done = subprocess.run([processes.BIN / "switchyard", "serve", broken, "--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "broken.gguf" in done.stderr and "truncated" in done.stderr
