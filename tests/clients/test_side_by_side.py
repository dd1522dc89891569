"""The pure parts of tools/bench/side_by_side, and the sizes that it reads of its models."""
import json
import subprocess
import sys
import types

import pytest

from processes import ROOT

sys.path[:0] = [str(ROOT / "tools/bench"), str(ROOT / "tools/make_tiny_model")]

import make_random_model  # noqa: E402
from sbs import figures, machine, main, models, parts, peer, report, servers  # noqa: E402

TO_GGUF = ROOT / "tools/make_tiny_model/to_gguf.py"
CONFIG = {**make_random_model.COMMON, "vocab_size": 96, "hidden_size": 32, "intermediate_size": 64, "moe_intermediate_size": 16,
          "num_hidden_layers": 2, "num_attention_heads": 2, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 2,
          "topk_group": 1, "q_lora_rank": 24, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 12}


@pytest.fixture
def checkpoint(tmp_path):
    directory = tmp_path / "model"
    directory.mkdir()
    make_random_model.write_weights(directory, CONFIG, seed=1)
    (directory / "config.json").write_text(json.dumps(CONFIG))
    tokens = {chr(65 + i): i for i in range(20)}
    (directory / "tokenizer.json").write_text(json.dumps({
        "model": {"vocab": tokens, "merges": [["A", "B"]]}, "added_tokens": [{"id": 20, "content": "<end>", "special": True}]}))
    (directory / "tokenizer_config.json").write_text("{}")
    return directory


def test_the_peers_output_is_read():
    text = json.dumps([{"n_prompt": 512, "n_gen": 0, "samples_ts": [200.5]}, {"n_prompt": 0, "n_gen": 24, "samples_ts": [20.0, 22.0]}])
    assert peer.parse_bench(text) == {"pp512": [200.5], "tg24": [20.0, 22.0]}
    lines = 'load: noise\n{"pl": 16, "speed_tg": 77.5}\n\n{"pl": 32, "speed_tg": 92}\n'
    assert peer.parse_batched(lines) == {16: 77.5, 32: 92}


def test_our_own_output_is_read():
    assert parts.parse_dispatch("local  1 tokens x 2048: p1 3.0  p10 4.0  p50 5.5  p90 6.0  p99 7.0 us, wire 2.1\n"
                                "tcp    1 tokens x 2048: p1 3.0  p10 4.0  p50 65.5  p90 6.0  p99 7.0 us, wire 50.2\n") == {
                                    "local": 5.5, "local_wire": 2.1, "tcp": 65.5, "tcp_wire": 50.2}
    assert servers.parse_metrics('# HELP x y\na{b="c d"} 1.5\na{b="e"} 2\nz 7\n') == {"a": 3.5, "z": 7}
    assert servers.parse_status("Name:\tx\nVmRSS:\t    2 kB\nRssFile:\t1 kB\n") == {"VmRSS": 2048, "RssFile": 1024}
    assert servers.parse_stat("7 (a (b) c) S " + " ".join(str(i) for i in range(4, 30))) == ("a (b) c", (14 + 15) / 100)
    assert servers.fact("http: http://127.0.0.1:1\nready\n", "http: ") == "http://127.0.0.1:1"
    assert servers.fact("http: http://127.0", "http: ") is None  # not whole yet


def test_samples_end_with_the_time(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    b = parts.Bench(None, None, None, types.SimpleNamespace(checkpoint=tmp_path), None, parts.QUICK, None)
    assert list(b.repeats(3)) == [0, 1, 2]
    b.until = 0
    assert (list(b.repeats(3)), list(b.repeats(3, least=2)), list(b.repeats(1, least=2))) == ([0], [0, 1], [0])


def test_figures_are_made_of_samples():
    # A machine that is twice as fast in the second pair does not change a ratio.
    up = figures.ratio(figures.FIGURES["decode1_bf16_ratio"], [30, 60, 28], [20, 40, 20])
    assert (up["value"], up["best_ratio"], up["reached"]) == (1.5, 1.5, True)
    down = figures.ratio(figures.FIGURES["clients32_ttft_ratio"], [600, 500], [1000, 1000])
    assert (down["value"], down["best_ratio"], down["reached"]) == (0.55, 0.5, False)
    assert figures.result(figures.FIGURES["load_ratio"], None, reason="x")["reached"] is None
    assert figures.bandwidth_share(2e9, 10, 40) == 0.5
    assert figures.peak_share(1e9, 0.5, 4) == 0.5
    assert figures.wire_extra_us({"local": 5.5, "tcp": 65.5, "shm": 15}, "shm") == 9.5
    before, after = {figures.ENGINE: 1, figures.KERNELS: 1}, {figures.ENGINE: 11, figures.KERNELS: 9}
    assert figures.overhead_share(before, after) == pytest.approx(0.2)
    assert figures.rss_over_mb({"VmRSS": 900e6, "RssFile": 500e6}, weights=400e6, kv=100e6) == 400
    assert figures.rss_over_mb({"VmRSS": 900e6, "RssFile": 300e6}, weights=400e6, kv=100e6) == 500


def test_a_token_costs_what_it_reads(checkpoint):
    c = CONFIG
    sizes = models.tensor_sizes(checkpoint)
    expert = 3 * 32 * 16 * 2
    everything = sum(size for _, size in sizes.values())
    assert models.active_bytes(sizes, c) == everything - 96 * 32 * 2 - 2 * expert  # two of the four experts, no embeddings
    one, two = models.prefill_flops(c, 1), models.prefill_flops(c, 2)
    matrices = sum(size for name, (shape, size) in sizes.items()
                   if len(shape) == 2 and ".experts." not in name and "embed" not in name and "lm_head" not in name) // 2 + expert
    scores = 2 * 2 * (8 + 4 + 12)  # layers × heads × (query·key and weight·value)
    assert one == 2 * (matrices + scores + 96 * 32)
    assert two - one == 2 * (matrices + 2 * scores)


def test_sizes_of_a_gguf_are_read_too(checkpoint, tmp_path):
    out = tmp_path / "model.gguf"
    subprocess.run([sys.executable, TO_GGUF, "--pre", "deepseek-v3", checkpoint, out], check=True)
    sizes, stored = models.tensor_sizes(out), models.tensor_sizes(checkpoint)
    assert sizes["blk.1.ffn_down_exps.weight"] == ([4, 32, 16], 4 * 32 * 16 * 2)
    assert sizes["blk.1.ffn_gate_inp.weight"] == ([4, 32], 4 * 32 * 4)
    assert sizes["blk.0.attn_k_b.weight"][0] == [2, 16, 8]
    assert sum(s for _, s in stored.values()) < sum(s for _, s in sizes.values()) < 1.2 * sum(s for _, s in stored.values())


def test_the_table_names_what_is_missing():
    results = {"decode1_q8_0_ratio": figures.result(figures.FIGURES["decode1_q8_0_ratio"], None, reason="no GGUF yet"),
               "decode1_bf16_ratio": figures.ratio(figures.FIGURES["decode1_bf16_ratio"], [30], [20], unit="tokens/s")}
    text = report.table(results)
    assert "no GGUF yet" in text and "ours 30, theirs 20 tokens/s" in text


def test_cores_are_named_as_taskset_does():
    assert main.cores_of("0,2-4,3") == [0, 2, 3, 4]


def test_the_better_of_two_runs_is_known_though_one_lacks_it():
    assert machine.better({"a": 1, "b": 5, "c": None, "d": None}, {"a": 3, "b": 4, "c": 2, "d": None}) == {"a": 3, "b": 5, "c": 2, "d": None}


def test_the_largest_file_of_a_checkpoint_is_read(tmp_path):
    for name, size in (("a", 10), ("b", 30), ("c", 20)):
        (tmp_path / f"{name}.safetensors").write_bytes(bytes(size))
    assert models.largest_file(tmp_path).name == "b.safetensors"
    assert models.largest_file(tmp_path / "m.gguf") == tmp_path / "m.gguf"
