#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Write a random-weight DeepSeek-V3-shaped checkpoint for speed measurements. Needs nothing but Python.

    python3 tools/make_tiny_model/make_random_model.py --shape small --out build/models/random-300m
    python3 tools/make_tiny_model/make_random_model.py --shape bench --out build/models/bench-3b

small: 338 M parameters, hidden 1024, 12 layers (the first dense), 32 experts of 256, top-4 of 2 of 4 groups, the tokenizer of
models/tiny-r1. bench: 3.5 B parameters of which 0.7 B active, hidden 2048, 8 layers (the first dense, 8192 wide), 64 experts of
1024, top-6 of 4 of 8 groups, 1 shared expert, vocabulary 129280, the tokenizer of DeepSeek-V3 (tests/golden/tokenizers); 7 GB.
Weights are bf16 of unit gain, so that activations stay finite; what it says is noise. A tensor's values depend on its name and
the seed alone. to_gguf.py beside this file writes the same weights as GGUF.
"""
import argparse
import json
import lzma
import math
import pathlib
import random
import shutil
import struct
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
SHARD_BYTES = 2_000_000_000
PIECE = 1 << 22  # values made at a time

SHAPES = {
    "small": dict(
        vocab_size=2560, hidden_size=1024, intermediate_size=4096, moe_intermediate_size=256, num_hidden_layers=12,
        n_routed_experts=32, num_experts_per_tok=4, n_group=4, topk_group=2, q_lora_rank=384, kv_lora_rank=256,
        qk_nope_head_dim=64, qk_rope_head_dim=32, v_head_dim=64),
    "bench": dict(
        vocab_size=129280, hidden_size=2048, intermediate_size=8192, moe_intermediate_size=1024, num_hidden_layers=8,
        n_routed_experts=64, num_experts_per_tok=6, n_group=8, topk_group=4, q_lora_rank=768, kv_lora_rank=512,
        qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128),
}
COMMON = dict(
    architectures=["DeepseekV3ForCausalLM"], model_type="deepseek_v3", num_attention_heads=16, num_key_value_heads=16,
    n_shared_experts=1, topk_method="noaux_tc", scoring_func="sigmoid", norm_topk_prob=True, routed_scaling_factor=2.5,
    first_k_dense_replace=1, moe_layer_freq=1, hidden_act="silu", max_position_embeddings=8192, rms_norm_eps=1e-6,
    rope_theta=10000.0, rope_scaling=None, attention_bias=False, tie_word_embeddings=False, bos_token_id=0, eos_token_id=1,
    torch_dtype="bfloat16")


def shapes(c):
    """Name and shape of each tensor, in the order of the layers."""
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


def dtype_of(name):
    return "F32" if name.endswith("e_score_correction_bias") else "BF16"


def values(name, shape, seed):
    """The tensor's bytes, piece by piece."""
    count, rng = math.prod(shape), random.Random(f"{seed}:{name}")
    if dtype_of(name) == "F32":
        yield struct.pack(f"<{count}f", *(rng.gauss(0, 0.1) for _ in range(count)))
        return
    if name.endswith("norm.weight"):
        yield b"\x80\x3f" * count
        return
    # ±[1, 4) × 2^k, whose root mean square is about 2.3 × 2^k: k brings it to the wanted gain.
    gain = 1.0 if "embed" in name else shape[-1] ** -0.5
    biased = 127 + round(math.log2(gain / 2.3))
    low = bytes((((biased & 1) << 7) ^ (b & 0x80)) | (b & 0x7f) for b in range(256))
    high = bytes((b & 0x80) | (biased >> 1) for b in range(256))
    for begin in range(0, count, PIECE):
        n = min(PIECE, count - begin)
        out = bytearray(2 * n)
        out[0::2] = rng.randbytes(n).translate(low)
        out[1::2] = rng.randbytes(n).translate(high)
        yield out


def shards(c):
    """The tensors as (name, shape, bytes), cut into files of at most SHARD_BYTES."""
    files, size = [[]], 0
    for name, shape in shapes(c):
        n = math.prod(shape) * (4 if dtype_of(name) == "F32" else 2)
        if size + n > SHARD_BYTES and files[-1]:
            files.append([])
            size = 0
        files[-1].append((name, shape, n))
        size += n
    return files


def write_weights(out, c, seed):
    files = shards(c)
    total = sum(n for f in files for _, _, n in f)
    done, start, index = 0, time.monotonic(), {}
    for i, tensors in enumerate(files, 1):
        file = "model.safetensors" if len(files) == 1 else f"model-{i:05}-of-{len(files):05}.safetensors"
        header, offset = {"__metadata__": {"format": "pt"}}, 0
        for name, shape, n in tensors:
            header[name] = dict(dtype=dtype_of(name), shape=list(shape), data_offsets=[offset, offset + n])
            index[name] = file
            offset += n
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with open(out / file, "wb") as f:
            f.write(struct.pack("<Q", len(text)) + text)
            for name, shape, n in tensors:
                for piece in values(name, shape, seed):
                    f.write(piece)
                    done += len(piece)
                left = (time.monotonic() - start) * (total / done - 1)
                print(f"\r{done / 1e6:.0f} of {total / 1e6:.0f} MB, {left:.0f} s left  ", end="", flush=True)
    print()
    if len(files) > 1:
        (out / "model.safetensors.index.json").write_text(
            json.dumps({"metadata": {"total_size": total}, "weight_map": index}, indent=1))


def write_tokenizer(out, shape):
    if shape == "small":
        for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
            shutil.copy(ROOT / "models/tiny-r1" / name, out / name)
        return
    golden = ROOT / "tests/golden/tokenizers/deepseek-v3"
    (out / "tokenizer.json").write_bytes(lzma.decompress((golden / "tokenizer.json.xz").read_bytes()))
    shutil.copy(golden / "tokenizer_config.json", out)
    (out / "generation_config.json").write_text(json.dumps(dict(bos_token_id=0, eos_token_id=1)))


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--out", required=True)
    ap.add_argument("--shape", choices=SHAPES, default="small")
    ap.add_argument("--layers", type=int, help="another number of layers than the shape has")
    ap.add_argument("--seed", type=int, default=1)
    a = ap.parse_args()
    c = {**COMMON, **SHAPES[a.shape]}
    if a.layers:
        c["num_hidden_layers"] = a.layers
    out = pathlib.Path(a.out)
    out.mkdir(parents=True, exist_ok=True)
    write_tokenizer(out, a.shape)
    write_weights(out, c, a.seed)
    (out / "config.json").write_text(json.dumps(c, indent=2))  # last: a directory without it is not finished
    print(f"{out}: {sum(math.prod(s) for _, s in shapes(c)) / 1e6:.0f} M parameters")


if __name__ == "__main__":
    main()
