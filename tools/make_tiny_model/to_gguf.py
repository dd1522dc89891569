#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Write a bf16 checkpoint of DeepSeek-V3's shape as a bf16 GGUF of architecture deepseek2. Needs nothing but Python.

    python3 tools/make_tiny_model/to_gguf.py build/models/bench-3b build/models/bench-3b-bf16.gguf

For the random models that make_random_model.py writes: no rope scaling, no draft layers, byte-level BPE. The experts of a layer
become one tensor, kv_b_proj becomes k_b (transposed) and v_b a head; norms, gate and bias are f32, as llama.cpp wants them. Other
types are made of the file by llama.cpp's llama-quantize.
"""
import argparse
import array
import json
import mmap
import pathlib
import struct
import time

ALIGN = 32
F32, BF16 = 0, 30
U32, FLOAT, BOOL, STRING, ARRAY, I32 = 4, 6, 7, 8, 9, 5
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5  # kinds of tokens


class Checkpoint:
    """Tensors of a directory of safetensors: shape, dtype and the mapped bytes by name."""

    def __init__(self, directory):
        self.tensors = {}
        for path in sorted(directory.glob("*.safetensors")):
            with open(path, "rb") as f:
                data = memoryview(mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ))
            size = struct.unpack("<Q", data[:8])[0]
            for name, t in json.loads(bytes(data[8:8 + size])).items():
                if name != "__metadata__":
                    begin, end = t["data_offsets"]
                    self.tensors[name] = t["shape"], t["dtype"], data[8 + size + begin:8 + size + end]

    def shape(self, name):
        return self.tensors[name][0]

    def bytes(self, name):
        return self.tensors[name][2]


def as_f32(checkpoint, name):
    _, dtype, data = checkpoint.tensors[name]
    if dtype == "F32":
        return bytes(data)
    out = bytearray(2 * len(data))  # a bf16 is the upper half of an f32
    out[2::4], out[3::4] = data[0::2], data[1::2]
    return bytes(out)


def key_rows(checkpoint, name, c):
    """[heads, kv_lora, nope] of kv_b_proj [heads * (nope + v), kv_lora]."""
    n, v, rank = c["qk_nope_head_dim"], c["v_head_dim"], c["kv_lora_rank"]
    all_rows = array.array("H", bytes(checkpoint.bytes(name)))
    for head in range(c["num_attention_heads"]):
        begin = head * (n + v) * rank
        rows = all_rows[begin:begin + n * rank]
        for column in range(rank):
            yield rows[column::rank].tobytes()


def value_rows(checkpoint, name, c):
    n, v, row = c["qk_nope_head_dim"], c["v_head_dim"], 2 * c["kv_lora_rank"]
    for head in range(c["num_attention_heads"]):
        begin = (head * (n + v) + n) * row
        yield checkpoint.bytes(name)[begin:begin + v * row]


def tensors(checkpoint, c):
    """(GGUF name, shape slowest first, type, maker of pieces of bytes), in file order."""
    def f32(out, name):
        return out, checkpoint.shape(name), F32, lambda: [as_f32(checkpoint, name)]

    def bf16(out, *names):
        shape = checkpoint.shape(names[0])
        return out, shape if len(names) == 1 else [len(names), *shape], BF16, lambda: map(checkpoint.bytes, names)

    yield bf16("token_embd.weight", "model.embed_tokens.weight")
    heads, rank = c["num_attention_heads"], c["kv_lora_rank"]
    for i in range(c["num_hidden_layers"]):
        b, p = f"blk.{i}.", f"model.layers.{i}."
        a, m = p + "self_attn.", p + "mlp."
        yield f32(b + "attn_norm.weight", p + "input_layernorm.weight")
        yield bf16(b + "attn_q_a.weight", a + "q_a_proj.weight")
        yield f32(b + "attn_q_a_norm.weight", a + "q_a_layernorm.weight")
        yield bf16(b + "attn_q_b.weight", a + "q_b_proj.weight")
        yield bf16(b + "attn_kv_a_mqa.weight", a + "kv_a_proj_with_mqa.weight")
        yield f32(b + "attn_kv_a_norm.weight", a + "kv_a_layernorm.weight")
        kv_b = a + "kv_b_proj.weight"
        yield b + "attn_k_b.weight", [heads, rank, c["qk_nope_head_dim"]], BF16, lambda n=kv_b: key_rows(checkpoint, n, c)
        yield b + "attn_v_b.weight", [heads, c["v_head_dim"], rank], BF16, lambda n=kv_b: value_rows(checkpoint, n, c)
        yield bf16(b + "attn_output.weight", a + "o_proj.weight")
        yield f32(b + "ffn_norm.weight", p + "post_attention_layernorm.weight")
        if i < c["first_k_dense_replace"]:
            for part in ("gate", "up", "down"):
                yield bf16(f"{b}ffn_{part}.weight", f"{m}{part}_proj.weight")
            continue
        yield f32(b + "ffn_gate_inp.weight", m + "gate.weight")
        yield f32(b + "exp_probs_b.bias", m + "gate.e_score_correction_bias")
        for part in ("gate", "up", "down"):
            yield bf16(f"{b}ffn_{part}_exps.weight",
                       *(f"{m}experts.{e}.{part}_proj.weight" for e in range(c["n_routed_experts"])))
            yield bf16(f"{b}ffn_{part}_shexp.weight", f"{m}shared_experts.{part}_proj.weight")
    yield f32("output_norm.weight", "model.norm.weight")
    yield bf16("output.weight", "lm_head.weight")


def vocabulary(directory, c):
    """Texts and kinds of all ids, and the merges."""
    t = json.loads((directory / "tokenizer.json").read_text())
    texts = [f"[PAD{i}]" for i in range(c["vocab_size"])]
    kinds = [UNUSED] * c["vocab_size"]
    for text, i in t["model"]["vocab"].items():
        texts[i], kinds[i] = text, NORMAL
    for token in t["added_tokens"]:
        texts[token["id"]] = token["content"]
        kinds[token["id"]] = CONTROL if token["special"] else USER_DEFINED
    merges = [m if isinstance(m, str) else " ".join(m) for m in t["model"]["merges"]]
    return texts, kinds, merges


def metadata(directory, c):
    texts, kinds, merges = vocabulary(directory, c)
    t = json.loads((directory / "tokenizer_config.json").read_text())
    a = "deepseek2."
    nope, rope, rank = c["qk_nope_head_dim"], c["qk_rope_head_dim"], c["kv_lora_rank"]
    yield "general.architecture", STRING, "deepseek2"
    yield "general.name", STRING, directory.name
    yield "general.file_type", U32, 32  # mostly bf16
    yield "general.quantization_version", U32, 2
    for key, value in {
            "block_count": c["num_hidden_layers"], "context_length": c["max_position_embeddings"],
            "embedding_length": c["hidden_size"], "feed_forward_length": c["intermediate_size"],
            "vocab_size": c["vocab_size"], "leading_dense_block_count": c["first_k_dense_replace"],
            "attention.head_count": c["num_attention_heads"], "attention.head_count_kv": 1,
            "attention.q_lora_rank": c["q_lora_rank"], "attention.kv_lora_rank": rank,
            "attention.key_length": rank + rope, "attention.value_length": rank,
            "attention.key_length_mla": nope + rope, "attention.value_length_mla": c["v_head_dim"],
            "rope.dimension_count": rope, "expert_feed_forward_length": c["moe_intermediate_size"],
            "expert_count": c["n_routed_experts"], "expert_used_count": c["num_experts_per_tok"],
            "expert_shared_count": c["n_shared_experts"], "expert_group_count": c["n_group"],
            "expert_group_used_count": c["topk_group"], "expert_gating_func": 2}.items():
        yield a + key, U32, value
    yield a + "attention.layer_norm_rms_epsilon", FLOAT, c["rms_norm_eps"]
    yield a + "rope.freq_base", FLOAT, c["rope_theta"]
    yield a + "expert_weights_scale", FLOAT, c["routed_scaling_factor"]
    yield a + "expert_weights_norm", BOOL, c["norm_topk_prob"]
    yield "tokenizer.ggml.model", STRING, "gpt2"
    yield "tokenizer.ggml.pre", STRING, "deepseek-v3"
    yield "tokenizer.ggml.tokens", (ARRAY, STRING), texts
    yield "tokenizer.ggml.token_type", (ARRAY, I32), kinds
    yield "tokenizer.ggml.merges", (ARRAY, STRING), merges
    yield "tokenizer.ggml.bos_token_id", U32, c["bos_token_id"]
    yield "tokenizer.ggml.eos_token_id", U32, c["eos_token_id"]
    yield "tokenizer.ggml.padding_token_id", U32, c["eos_token_id"]
    yield "tokenizer.ggml.add_bos_token", BOOL, bool(t.get("add_bos_token"))
    yield "tokenizer.ggml.add_eos_token", BOOL, bool(t.get("add_eos_token"))
    if "chat_template" in t:
        yield "tokenizer.chat_template", STRING, t["chat_template"]


def text(value):
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def scalar(kind, value):
    return text(value) if kind == STRING else struct.pack({U32: "<I", I32: "<i", FLOAT: "<f", BOOL: "<?"}[kind], value)


def entry(key, kind, value):
    if isinstance(kind, tuple):
        return text(key) + struct.pack("<IIQ", *kind, len(value)) + b"".join(scalar(kind[1], v) for v in value)
    return text(key) + struct.pack("<I", kind) + scalar(kind, value)


def size_of(shape, kind):
    size = 4 if kind == F32 else 2
    for n in shape:
        size *= n
    return size


def write(directory, out):
    c = json.loads((directory / "config.json").read_text())
    if c["model_type"] != "deepseek_v3" or c.get("rope_scaling"):
        raise SystemExit(f"{directory}/config.json: only model_type deepseek_v3 without rope_scaling is written")
    entries = [entry(*e) for e in metadata(directory, c)]
    parts = list(tensors(Checkpoint(directory), c))
    infos, offset = [], 0
    for name, shape, kind, _ in parts:
        infos.append(text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *reversed(shape), kind, offset))
        offset += -(-size_of(shape, kind) // ALIGN) * ALIGN
    start, done = time.monotonic(), 0
    unfinished = out.with_name(out.name + ".part")
    with open(unfinished, "wb") as f:
        f.write(b"GGUF" + struct.pack("<IQQ", 3, len(parts), len(entries)) + b"".join(entries) + b"".join(infos))
        f.write(bytes(-f.tell() % ALIGN))
        for name, shape, kind, pieces in parts:
            written = sum(f.write(piece) for piece in pieces())
            if written != size_of(shape, kind):
                raise SystemExit(f"{name}: {written} bytes, not {size_of(shape, kind)}")
            done += written + f.write(bytes(-written % ALIGN))
            left = (time.monotonic() - start) * (offset / done - 1)
            print(f"\r{done / 1e6:.0f} of {offset / 1e6:.0f} MB, {left:.0f} s left  ", end="", flush=True)
    unfinished.rename(out)
    print(f"\n{out}: {len(parts)} tensors")


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("checkpoint", type=pathlib.Path, help="directory with config.json and safetensors")
    ap.add_argument("out", type=pathlib.Path, help="the GGUF file to write")
    a = ap.parse_args()
    write(a.checkpoint, a.out)


if __name__ == "__main__":
    main()
