#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Write a Hugging Face checkpoint as a GGUF file: DeepSeek-V2/V3/R1, Qwen3-MoE, OLMoE, Mixtral, gpt-oss.

    python3 tools/make_tiny_model/to_gguf.py models/tiny-r1 build/tiny-r1.gguf
    python3 tools/make_tiny_model/to_gguf.py --type q8_0 models/tiny-r1 build/tiny-r1-q8_0.gguf

Names, metadata and forms are those of llama.cpp's own converter: the experts of a layer become one tensor, kv_b_proj becomes
k_b (transposed) and v_b a head, Mixtral's q and k rows are permuted for interleaved rope; vectors, norms and gates are f32.
What GGUF cannot say of a model is refused. Types bf16 and f32 of a bf16 checkpoint need nothing but Python, the others the
packages numpy and gguf; K-quants are made of the file by llama.cpp's llama-quantize.
"""
import argparse
import array
import json
import pathlib
import re
import struct
import sys
import time

import safetensors_dir

ALIGN = 32
U32, FLOAT, BOOL, STRING, ARRAY, I32 = 4, 6, 7, 8, 9, 5
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # kinds of tokens
# Our name: ggml's number of the type, values and bytes of a block, general.file_type.
TYPES = {"f32": (0, 1, 4, 0), "f16": (1, 1, 2, 1), "bf16": (30, 1, 2, 32), "q4_0": (2, 32, 18, 2), "q8_0": (8, 32, 34, 7),
         "mxfp4": (39, 32, 17, 38)}


def refuse(what):
    raise SystemExit(f"to_gguf: {what}")


class Tensor:
    """A tensor to be written: shape slowest first, and the source's bytes in pieces of whole rows."""

    def __init__(self, name, shape, dtype, pieces):
        self.name, self.shape, self.dtype, self.pieces = name, list(shape), dtype, pieces

    def stored(self, wanted, keep):
        """The type that it is written in, by llama.cpp's rules; bf16 where its name begins with one of `keep`."""
        vector = len(self.shape) == 1 or self.name.endswith("_norm.weight")
        if vector or "ffn_gate_inp." in self.name or not self.name.endswith(".weight"):
            return "f32"
        if wanted == "mxfp4" and "_exps." not in self.name or self.name.startswith(tuple(keep)):
            return "bf16"
        return wanted if self.shape[-1] % TYPES[wanted][1] == 0 else "f16"

    def size(self, kind):
        _, values, size, _ = TYPES[kind]
        for n in self.shape:
            size *= n
        return size // values


def encoder(source, kind, row):
    """Bytes of the source's type → bytes of the kind."""
    if source == kind:
        return lambda data: data
    if (source, kind) == ("bf16", "f32"):
        def widen(data):
            out = bytearray(2 * len(data))  # a bf16 is the upper half of an f32
            out[2::4], out[3::4] = data[0::2], data[1::2]
            return bytes(out)
        return widen
    import gguf  # noqa: PLC0415 (needed for these types only)
    import numpy as np  # noqa: PLC0415
    number = gguf.GGMLQuantizationType(TYPES[kind][0])
    floats = {"bf16": lambda d: (np.frombuffer(d, np.uint16).astype(np.uint32) << 16).view(np.float32),
              "f16": lambda d: np.frombuffer(d, np.float16).astype(np.float32),
              "f32": lambda d: np.frombuffer(d, np.float32)}[source]
    return lambda data: gguf.quants.quantize(floats(bytes(data)).reshape(-1, row), number).tobytes()


def transposed(data, rows, columns, width):
    """[rows, columns] of values of `width` bytes → one row of the transpose after another."""
    values = array.array({2: "H", 4: "I"}[width], bytes(data))
    assert len(values) == rows * columns
    for column in range(columns):
        yield values[column::columns].tobytes()


class Converter:
    """The tensors of a model; `c` is its config.json."""

    def __init__(self, directory, c, whole_kv_b):
        self.tensors, self.c, self.whole_kv_b = safetensors_dir.read(directory), c, whole_kv_b

    def of(self, out, *names):
        """One tensor, or several stacked."""
        missing = [n for n in names if n not in self.tensors]
        if missing:
            refuse(f"the checkpoint has no tensor {missing[0]}")
        shape, dtype, _ = self.tensors[names[0]]
        yield Tensor(out, shape if len(names) == 1 else [len(names), *shape], dtype, lambda: (self.tensors[n][2] for n in names))

    def if_there(self, out, name):
        if name in self.tensors:
            yield from self.of(out, name)

    def linear(self, out, name):
        yield from self.of(out + ".weight", name + ".weight")
        yield from self.if_there(out + ".bias", name + ".bias")

    def all(self):
        yield from self.of("token_embd.weight", "model.embed_tokens.weight")
        for i in range(self.c["num_hidden_layers"]):
            yield from self.layer(f"blk.{i}.", f"model.layers.{i}.", i)
        yield from self.of("output_norm.weight", "model.norm.weight")
        if not self.c.get("tie_word_embeddings"):
            yield from self.of("output.weight", "lm_head.weight")

    def layer(self, b, p, i):
        yield from self.of(b + "attn_norm.weight", p + "input_layernorm.weight")
        yield from self.attention(b, p + "self_attn.")
        norm = "post_attention_norm" if self.c["model_type"] == "gpt_oss" else "ffn_norm"
        yield from self.of(f"{b}{norm}.weight", p + "post_attention_layernorm.weight")
        yield from self.experts(b, p, i)

    def attention(self, b, a):
        if self.c.get("kv_lora_rank"):
            yield from self.latent_attention(b, a)
            return
        for part in ("q", "k"):
            if self.c["model_type"] == "mixtral":
                yield from self.permuted(f"{b}attn_{part}.weight", f"{a}{part}_proj.weight", part)
            else:
                yield from self.linear(f"{b}attn_{part}", f"{a}{part}_proj")
            yield from self.if_there(f"{b}attn_{part}_norm.weight", f"{a}{part}_norm.weight")
        yield from self.linear(b + "attn_v", a + "v_proj")
        yield from self.linear(b + "attn_output", a + "o_proj")
        yield from self.if_there(b + "attn_sinks.weight", a + "sinks")

    def permuted(self, out, name, part):
        """Rows of a head: first half and second half interleaved."""
        shape, dtype, data = self.tensors[name]
        heads = self.c["num_attention_heads" if part == "q" else "num_key_value_heads"]
        dim, row = shape[0] // heads, len(data) // shape[0]

        def rows():
            for head in range(heads):
                for i in range(dim):
                    at = (head * dim + i // 2 + i % 2 * (dim // 2)) * row
                    yield data[at:at + row]
        yield Tensor(out, shape, dtype, rows)

    def latent_attention(self, b, a):
        if self.c.get("q_lora_rank"):
            yield from self.linear(b + "attn_q_a", a + "q_a_proj")
            yield from self.of(b + "attn_q_a_norm.weight", a + "q_a_layernorm.weight")
            yield from self.linear(b + "attn_q_b", a + "q_b_proj")
        else:
            yield from self.linear(b + "attn_q", a + "q_proj")
        yield from self.linear(b + "attn_kv_a_mqa", a + "kv_a_proj_with_mqa")
        yield from self.of(b + "attn_kv_a_norm.weight", a + "kv_a_layernorm.weight")
        if self.whole_kv_b:
            yield from self.linear(b + "attn_kv_b", a + "kv_b_proj")
        else:
            yield from self.split_kv_b(b, a + "kv_b_proj.weight")
        yield from self.linear(b + "attn_output", a + "o_proj")

    def split_kv_b(self, b, name):
        """Of kv_b_proj [heads * (nope + v), kv_lora]: k_b [heads, kv_lora, nope] and v_b [heads, v, kv_lora]."""
        _, dtype, data = self.tensors[name]
        nope, v, rank, heads = (self.c[k] for k in ("qk_nope_head_dim", "v_head_dim", "kv_lora_rank", "num_attention_heads"))
        row = len(data) // (heads * (nope + v))

        def keys():
            for head in range(heads):
                at = head * (nope + v) * row
                yield from transposed(data[at:at + nope * row], nope, rank, row // rank)

        def values():
            for head in range(heads):
                at = (head * (nope + v) + nope) * row
                yield data[at:at + v * row]
        yield Tensor(b + "attn_k_b.weight", [heads, rank, nope], dtype, keys)
        yield Tensor(b + "attn_v_b.weight", [heads, v, rank], dtype, values)

    def experts(self, b, p, i):
        kind = self.c["model_type"]
        block = p + ("block_sparse_moe." if kind == "mixtral" else "mlp.")
        gate = block + ("router" if kind == "gpt_oss" else "gate")
        if gate + ".weight" not in self.tensors:
            for part in ("gate", "up", "down"):
                yield from self.linear(f"{b}ffn_{part}", f"{block}{part}_proj")
            return
        yield from self.linear(b + "ffn_gate_inp", gate)
        yield from self.if_there(b + "exp_probs_b.bias", gate + ".e_score_correction_bias")
        if kind == "gpt_oss":
            yield from self.stacked_experts(b, block + "experts.")
            return
        names = {"gate": "w1", "up": "w3", "down": "w2"} if kind == "mixtral" else {n: n + "_proj" for n in ("gate", "up", "down")}
        for part, name in names.items():
            yield from self.of(f"{b}ffn_{part}_exps.weight",
                               *(f"{block}experts.{e}.{name}.weight" for e in range(count_of_experts(self.c))))
            yield from self.if_there(f"{b}ffn_{part}_shexp.weight", f"{block}shared_experts.{part}_proj.weight")

    def stacked_experts(self, b, p):
        """gpt-oss: [experts, in, out] with gate and up in turn along out."""
        for part, name, first, step in (("gate", "gate_up_proj", 0, 2), ("up", "gate_up_proj", 1, 2), ("down", "down_proj", 0, 1)):
            (n, rows, columns), dtype, data = self.tensors[p + name]
            width = len(data) // (n * rows * columns)

            def pieces(n=n, rows=rows, columns=columns, data=data, width=width, first=first, step=step):
                size = len(data) // n
                for e in range(n):
                    lines = list(transposed(data[e * size:(e + 1) * size], rows, columns, width))
                    yield from lines[first::step]
            yield Tensor(f"{b}ffn_{part}_exps.weight", [n, columns // step, rows], dtype, pieces)
            shape, dtype, bias = self.tensors[p + name + "_bias"]

            def every(bias=bias, width=len(bias) // (shape[0] * shape[1]), first=first, step=step):
                yield array.array({2: "H", 4: "I"}[width], bytes(bias))[first::step].tobytes()
            yield Tensor(f"{b}ffn_{part}_exps.bias", [shape[0], shape[1] // step], dtype, every)


def count_of_experts(c):
    return next(c[k] for k in ("n_routed_experts", "num_local_experts", "num_experts") if k in c)


def rope_of(c):
    """Type, theta and parameters, of both spellings."""
    rope = c.get("rope_scaling") or c.get("rope_parameters") or {}
    return rope.get("rope_type", rope.get("type", "default")), rope.get("rope_theta", c.get("rope_theta", 10000.0)), rope


def check(c):
    """Refuses what GGUF's keys cannot say of a model."""
    kind, (scaling, _, rope) = c["model_type"], rope_of(c)
    alternating = ["sliding_attention" if i % 2 == 0 else "full_attention" for i in range(c["num_hidden_layers"])]
    for wrong, what in (
            (scaling not in ("default", "linear", "yarn"), f"rope of type {scaling}"),
            (rope.get("mscale") != rope.get("mscale_all_dim"), "mscale that differs from mscale_all_dim"),
            (kind == "deepseek_v3" and not c.get("rope_interleave", True), "rope_interleave false"),
            (c.get("moe_layer_freq", 1) != 1, "moe_layer_freq other than 1"),
            (kind != "gpt_oss" and c.get("attention_bias"), "attention_bias"),
            (kind == "qwen3_moe" and not c.get("norm_topk_prob"), "norm_topk_prob false"),
            (kind == "qwen3_moe" and (c.get("mlp_only_layers") or c.get("decoder_sparse_step", 1) != 1), "layers without experts"),
            (kind == "qwen3_moe" and c.get("use_sliding_window"), "use_sliding_window"),
            (kind == "olmoe" and (c.get("norm_topk_prob") or c.get("clip_qkv")), "norm_topk_prob or clip_qkv"),
            (kind == "gpt_oss" and c.get("swiglu_limit", 7.0) != 7.0, "swiglu_limit other than 7"),
            (kind == "gpt_oss" and c.get("layer_types", alternating) != alternating, "layer_types other than alternating")):
        if wrong:
            refuse(f"config.json: GGUF cannot say {what} of a {kind} model")


ARCHITECTURES = {"deepseek_v2": "deepseek2", "deepseek_v3": "deepseek2", "qwen3_moe": "qwen3moe", "olmoe": "olmoe",
                 "mixtral": "llama", "gpt_oss": "gpt-oss"}


def model_keys(c, whole_kv_b):
    """Keys of the architecture, without its name in front."""
    kind, mla = c["model_type"], bool(c.get("kv_lora_rank"))
    head = c.get("head_dim") or c["hidden_size"] // c["num_attention_heads"]
    yield "block_count", c["num_hidden_layers"]
    yield "context_length", c["max_position_embeddings"]
    yield "embedding_length", c["hidden_size"]
    yield "feed_forward_length", c["intermediate_size"]
    yield "vocab_size", c["vocab_size"]
    yield "attention.head_count", c["num_attention_heads"]
    yield "attention.head_count_kv", 1 if mla and not whole_kv_b else c.get("num_key_value_heads", c["num_attention_heads"])
    yield "attention.layer_norm_rms_epsilon", float(c["rms_norm_eps"])
    yield "expert_count", count_of_experts(c)
    yield "expert_used_count", c["num_experts_per_tok"]
    if kind in ("qwen3_moe", "gpt_oss") or mla:
        yield "expert_feed_forward_length", c.get("moe_intermediate_size", c["intermediate_size"])
    if mla:
        yield from latent_keys(c, whole_kv_b)
    else:
        yield "attention.key_length", head
        yield "attention.value_length", head
        yield "rope.dimension_count", head
    if kind in ("gpt_oss", "mixtral") and c.get("sliding_window"):
        yield "attention.sliding_window", c["sliding_window"]
    scaling, theta, rope = rope_of(c)
    yield "rope.freq_base", float(theta)
    if scaling != "default":
        yield "rope.scaling.type", scaling
        yield "rope.scaling.factor", float(rope["factor"])
    if scaling == "yarn":
        yield "rope.scaling.original_context_length", rope["original_max_position_embeddings"]
        for ours, theirs in (("yarn_beta_fast", "beta_fast"), ("yarn_beta_slow", "beta_slow"), ("yarn_attn_factor", "attention_factor")):
            if rope.get(theirs) is not None:
                yield "rope.scaling." + ours, float(rope[theirs])
        if rope.get("mscale_all_dim") is not None:
            yield "rope.scaling.yarn_log_multiplier", 0.1 * rope["mscale_all_dim"]


def latent_keys(c, whole_kv_b):
    nope, rope, rank = c["qk_nope_head_dim"], c["qk_rope_head_dim"], c["kv_lora_rank"]
    yield "leading_dense_block_count", c.get("first_k_dense_replace", 0)
    if c.get("q_lora_rank"):
        yield "attention.q_lora_rank", c["q_lora_rank"]
    yield "attention.kv_lora_rank", rank
    yield "attention.key_length", nope + rope if whole_kv_b else rank + rope
    yield "attention.value_length", c["v_head_dim"] if whole_kv_b else rank
    if not whole_kv_b:
        yield "attention.key_length_mla", nope + rope
        yield "attention.value_length_mla", c["v_head_dim"]
    yield "rope.dimension_count", rope
    yield "expert_shared_count", c.get("n_shared_experts") or 0
    yield "expert_weights_scale", float(c.get("routed_scaling_factor", 1.0))
    yield "expert_weights_norm", bool(c.get("norm_topk_prob"))
    yield "expert_gating_func", 2 if c.get("scoring_func") == "sigmoid" else 1
    if c.get("n_group", 1) > 1 and c.get("topk_method") != "greedy":
        yield "expert_group_count", c["n_group"]
        yield "expert_group_used_count", c["topk_group"]


def pre_of(t):
    """What llama.cpp calls a tokenizer's way of cutting texts."""
    steps = (t.get("pre_tokenizer") or {}).get("pretokenizers", [t.get("pre_tokenizer") or {}])
    patterns = [s["pattern"].get("Regex", "") for s in steps if s.get("type") == "Split"]
    merges = {"".join(m.split(" ") if isinstance(m, str) else m) for m in t["model"]["merges"]}
    # Digit by digit is the same as in threes where no merge joins digits.
    digits = [r"\p{N}{1,3}"] + ([r"\p{N}"] if not any(re.fullmatch("[0-9]+", m) for m in merges) else [])
    if len(patterns) == 3 and patterns[0] in digits and patterns[2].startswith("[!\"#$%&'()*+"):
        return "deepseek-v3"
    if len(patterns) > 3 and patterns[0] == "[\r\n]":
        return "deepseek-llm"
    if len(patterns) == 1 and r"\p{Lu}" in patterns[0]:
        return "gpt-4o"
    if len(patterns) == 1 and patterns[0].startswith("(?i:'s|"):
        return "llama-bpe" if r"\p{N}{1,3}" in patterns[0] else "qwen2"
    if not patterns and steps[-1].get("type") == "ByteLevel" and steps[-1].get("use_regex", True):
        return "olmo" if (t.get("normalizer") or {}).get("type") == "NFC" else "gpt-2"
    return None


def vocabulary(t, size):
    """Texts and kinds of all ids."""
    texts, kinds = [f"[PAD{i}]" for i in range(size)], [UNUSED] * size
    fallback = t["model"].get("byte_fallback", False)
    for text, i in t["model"]["vocab"].items():
        texts[i], kinds[i] = text, BYTE if fallback and re.fullmatch("<0x[0-9A-Fa-f]{2}>", text) else NORMAL
    for token in t["added_tokens"]:
        content = token["content"]
        special = token["special"] or re.fullmatch(r"<\|.*\|>|<｜.*｜>|<unused.*>|<pad>|<mask>", content)
        texts[token["id"]], kinds[token["id"]] = content, CONTROL if special else USER_DEFINED
        if content == t["model"].get("unk_token"):
            kinds[token["id"]] = UNKNOWN
    return texts, kinds


def tokenizer_keys(directory, c, pre):
    if not (directory / "tokenizer.json").exists():
        yield "tokenizer.ggml.model", STRING, "no_vocab"
        for key in ("bos_token_id", "eos_token_id"):
            if isinstance(c.get(key), int):
                yield f"tokenizer.ggml.{key}", U32, c[key]
        return
    t = json.loads((directory / "tokenizer.json").read_text())
    texts, kinds = vocabulary(t, c["vocab_size"])
    merges = [m if isinstance(m, str) else " ".join(m) for m in t["model"]["merges"]]
    if t["model"].get("byte_fallback"):
        rank = {}
        for i, merge in enumerate(merges):
            rank.setdefault(merge.replace(" ", ""), i)
        yield "tokenizer.ggml.model", STRING, "llama"
        yield "tokenizer.ggml.pre", STRING, "default"
        yield "tokenizer.ggml.scores", (ARRAY, FLOAT), [float(-rank.get(text, 1 << 20)) for text in texts]
    else:
        yield "tokenizer.ggml.model", STRING, "gpt2"
        yield "tokenizer.ggml.pre", STRING, pre or pre_of(t) or refuse("tokenizer.json: unknown pre_tokenizer; give --pre")
        yield "tokenizer.ggml.merges", (ARRAY, STRING), merges
    yield "tokenizer.ggml.tokens", (ARRAY, STRING), texts
    yield "tokenizer.ggml.token_type", (ARRAY, I32), kinds
    config = directory / "tokenizer_config.json"
    s = json.loads(config.read_text()) if config.exists() else {}
    ids = {token["content"]: token["id"] for token in t["added_tokens"]} | t["model"]["vocab"]
    for key, name in (("bos", "bos_token"), ("eos", "eos_token"), ("unknown", "unk_token"), ("padding", "pad_token")):
        token = s.get(name)
        token = token["content"] if isinstance(token, dict) else token
        if token in ids:
            yield f"tokenizer.ggml.{key}_token_id", U32, ids[token]
    single = str((t.get("post_processor") or {}).get("processors", t.get("post_processor")))
    yield "tokenizer.ggml.add_bos_token", BOOL, bool(s.get("add_bos_token", "'SpecialToken'" in single))
    yield "tokenizer.ggml.add_eos_token", BOOL, bool(s.get("add_eos_token"))
    template = directory / "chat_template.jinja"
    if template.exists() or isinstance(s.get("chat_template"), str):
        yield "tokenizer.chat_template", STRING, template.read_text() if template.exists() else s["chat_template"]


def sampling_keys(directory):
    path = directory / "generation_config.json"
    g = json.loads(path.read_text()) if path.exists() else {}
    if g.get("do_sample") is False:
        g["temperature"] = 0
    for key, name in (("temp", "temperature"), ("top_p", "top_p"), ("min_p", "min_p"), ("penalty_repeat", "repetition_penalty")):
        if g.get(name) is not None:
            yield "general.sampling." + key, FLOAT, float(g[name])
    if g.get("top_k") is not None:
        yield "general.sampling.top_k", I32, g["top_k"]


def metadata(directory, c, a):
    architecture = ARCHITECTURES[c["model_type"]]
    yield "general.architecture", STRING, architecture
    yield "general.type", STRING, "model"
    yield "general.name", STRING, directory.resolve().name
    yield "general.file_type", U32, TYPES[a.type][3]
    yield "general.quantization_version", U32, 2
    yield from sampling_keys(directory)
    for key, value in model_keys(c, a.whole_kv_b):
        kind = {bool: BOOL, int: U32, float: FLOAT, str: STRING}[type(value)]
        yield f"{architecture}.{key}", kind, value
    yield from tokenizer_keys(directory, c, a.pre)


def text(value):
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def scalar(kind, value):
    return text(value) if kind == STRING else struct.pack({U32: "<I", I32: "<i", FLOAT: "<f", BOOL: "<?"}[kind], value)


def entry(key, kind, value):
    if isinstance(kind, tuple):
        return text(key) + struct.pack("<IIQ", *kind, len(value)) + b"".join(scalar(kind[1], v) for v in value)
    return text(key) + struct.pack("<I", kind) + scalar(kind, value)


def write(a):
    directory, out = a.checkpoint, a.out
    c = json.loads((directory / "config.json").read_text())
    if c["model_type"] not in ARCHITECTURES or c.get("quantization_config"):
        refuse(f"{directory}/config.json: model_type is {c['model_type']}; supported, unquantised: {', '.join(ARCHITECTURES)}")
    check(c)
    entries = [entry(*e) for e in metadata(directory, c, a)]
    tensors = [(t, t.stored(a.type, a.keep)) for t in Converter(directory, c, a.whole_kv_b).all()]
    infos, offset = [], 0
    for t, kind in tensors:
        dims = struct.pack(f"<I{len(t.shape)}Q", len(t.shape), *reversed(t.shape))
        infos.append(text(t.name) + dims + struct.pack("<IQ", TYPES[kind][0], offset))
        offset += -(-t.size(kind) // ALIGN) * ALIGN
    start, done = time.monotonic(), 0
    unfinished = out.with_name(out.name + ".part")
    with open(unfinished, "wb") as f:
        f.write(b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(entries)) + b"".join(entries) + b"".join(infos))
        f.write(bytes(-f.tell() % ALIGN))
        for t, kind in tensors:
            encode = encoder(t.dtype.lower(), kind, t.shape[-1])
            written = sum(f.write(encode(piece)) for piece in t.pieces())
            if written != t.size(kind):
                refuse(f"{t.name}: {written} bytes, not {t.size(kind)}")
            done += written + f.write(bytes(-written % ALIGN))
            left = (time.monotonic() - start) * (offset / done - 1)
            if sys.stdout.isatty():
                print(f"\r{done / 1e6:.0f} of {offset / 1e6:.0f} MB, {left:.0f} s left  ", end="", flush=True)
    unfinished.rename(out)
    print(f"\n{out}: {len(tensors)} tensors")


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("checkpoint", type=pathlib.Path, help="directory with config.json and safetensors")
    ap.add_argument("out", type=pathlib.Path, help="the GGUF file to write")
    ap.add_argument("--type", choices=TYPES, default="bf16", help="of matrices; mxfp4: of experts, the rest is bf16")
    ap.add_argument("--keep", action="append", default=[], metavar="NAME", help="of tensors whose names begin so, bf16 whatever the type is")
    ap.add_argument("--pre", help="tokenizer.ggml.pre, where tokenizer.json does not tell")
    ap.add_argument("--whole-kv-b", action="store_true", help="write kv_b_proj in one piece, as llama.cpp did until 2025")
    write(ap.parse_args())


if __name__ == "__main__":
    main()
