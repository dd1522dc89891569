#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Write a random-weight DeepSeek-V3-shaped checkpoint for speed measurements. Needs nothing but Python.

    python3 tools/make_tiny_model/make_random_model.py --out build/models/random-300m

The default has 338 M parameters: hidden 1024, 12 layers (the first dense), 32 experts of
256, top-4 of 2 of 4 groups, 1 shared expert, MLA. It borrows the tokenizer of models/tiny-r1. Weights are bf16 of unit gain,
so that activations stay finite; what it says is noise.
"""
import argparse
import json
import math
import pathlib
import random
import shutil
import struct

ROOT = pathlib.Path(__file__).resolve().parents[2]


def config(a):
    return dict(
        architectures=["DeepseekV3ForCausalLM"], model_type="deepseek_v3", vocab_size=a.vocab, hidden_size=a.hidden,
        intermediate_size=4 * a.hidden, moe_intermediate_size=a.expert_width, num_hidden_layers=a.layers,
        num_attention_heads=a.heads, num_key_value_heads=a.heads, n_shared_experts=1, n_routed_experts=a.experts,
        num_experts_per_tok=a.top_k, n_group=4, topk_group=2, topk_method="noaux_tc", scoring_func="sigmoid",
        norm_topk_prob=True, routed_scaling_factor=2.5, first_k_dense_replace=1, moe_layer_freq=1, q_lora_rank=384,
        kv_lora_rank=256, qk_nope_head_dim=64, qk_rope_head_dim=32, v_head_dim=64, hidden_act="silu",
        max_position_embeddings=8192, rms_norm_eps=1e-6, rope_theta=10000.0, rope_scaling=None, attention_bias=False,
        tie_word_embeddings=False, bos_token_id=0, eos_token_id=1, torch_dtype="bfloat16")


def shapes(c):
    H, n, r, v = c["num_attention_heads"], c["qk_nope_head_dim"], c["qk_rope_head_dim"], c["v_head_dim"]
    h = c["hidden_size"]
    yield "model.embed_tokens.weight", (c["vocab_size"], h)
    for i in range(c["num_hidden_layers"]):
        p = f"model.layers.{i}."
        yield p + "input_layernorm.weight", (h,)
        yield p + "post_attention_layernorm.weight", (h,)
        a = p + "self_attn."
        yield a + "q_a_proj.weight", (c["q_lora_rank"], h)
        yield a + "q_a_layernorm.weight", (c["q_lora_rank"],)
        yield a + "q_b_proj.weight", (H * (n + r), c["q_lora_rank"])
        yield a + "kv_a_proj_with_mqa.weight", (c["kv_lora_rank"] + r, h)
        yield a + "kv_a_layernorm.weight", (c["kv_lora_rank"],)
        yield a + "kv_b_proj.weight", (H * (n + v), c["kv_lora_rank"])
        yield a + "o_proj.weight", (h, H * v)
        m = p + "mlp."
        if i < c["first_k_dense_replace"]:
            widths = [(m, c["intermediate_size"])]
        else:
            w = c["moe_intermediate_size"]
            yield m + "gate.weight", (c["n_routed_experts"], h)
            yield m + "gate.e_score_correction_bias", (c["n_routed_experts"],)
            widths = [(f"{m}experts.{e}.", w) for e in range(c["n_routed_experts"])]
            widths.append((m + "shared_experts.", w * c["n_shared_experts"]))
        for q, w in widths:
            yield q + "gate_proj.weight", (w, h)
            yield q + "up_proj.weight", (w, h)
            yield q + "down_proj.weight", (h, w)
    yield "model.norm.weight", (h,)
    yield "lm_head.weight", (c["vocab_size"], h)


def values(name, shape, rng):
    """The tensor as bytes, and its dtype."""
    count = math.prod(shape)
    if name.endswith("e_score_correction_bias"):
        return struct.pack(f"<{count}f", *(rng.gauss(0, 0.1) for _ in range(count))), "F32"
    if name.endswith("norm.weight"):
        return b"\x80\x3f" * count, "BF16"
    # ±[1, 4) × 2^k, whose root mean square is about 2.3 × 2^k: k brings it to the wanted gain.
    gain = 1.0 if "embed" in name else shape[-1] ** -0.5
    biased = 127 + round(math.log2(gain / 2.3))
    low = bytes((((biased & 1) << 7) ^ (b & 0x80)) | (b & 0x7f) for b in range(256))
    high = bytes((b & 0x80) | (biased >> 1) for b in range(256))
    out = bytearray(2 * count)
    out[0::2] = rng.randbytes(count).translate(low)
    out[1::2] = rng.randbytes(count).translate(high)
    return bytes(out), "BF16"


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--out", required=True)
    ap.add_argument("--hidden", type=int, default=1024)
    ap.add_argument("--layers", type=int, default=12)
    ap.add_argument("--heads", type=int, default=16)
    ap.add_argument("--experts", type=int, default=32)
    ap.add_argument("--expert-width", type=int, default=256)
    ap.add_argument("--top-k", type=int, default=4)
    ap.add_argument("--vocab", type=int, default=2560)
    ap.add_argument("--seed", type=int, default=1)
    a = ap.parse_args()
    out = pathlib.Path(a.out)
    out.mkdir(parents=True, exist_ok=True)
    c, rng = config(a), random.Random(a.seed)
    (out / "config.json").write_text(json.dumps(c, indent=2))
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copy(ROOT / "models/tiny-r1" / name, out / name)
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in shapes(c):
        dtype = "F32" if name.endswith("e_score_correction_bias") else "BF16"
        size = math.prod(shape) * (4 if dtype == "F32" else 2)
        header[name] = dict(dtype=dtype, shape=list(shape), data_offsets=[offset, offset + size])
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(out / "model.safetensors", "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        for name, shape in shapes(c):
            data, dtype = values(name, shape, rng)
            assert header[name]["dtype"] == dtype
            f.write(data)
            print(f"\r{f.tell() / 1e6:.0f} of {offset / 1e6:.0f} MB", end="", flush=True)
    print(f"\n{out}: {sum(math.prod(s) for _, s in shapes(c)) / 1e6:.0f} M parameters")


if __name__ == "__main__":
    main()
