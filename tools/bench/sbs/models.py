# SPDX-License-Identifier: Apache-2.0
"""The benchmark's model in every form, and what a token of it costs in bytes and arithmetic."""
import json
import pathlib
import struct
import subprocess
import sys

from . import peer as peers

ROOT = pathlib.Path(__file__).resolve().parents[3]
MAKERS = ROOT / "tools/make_tiny_model"
NAME = "bench-3b"
TYPES = ("bf16", "q8_0", "q4_0")


class Models:
    """bench-3b/ (safetensors, bf16) and bench-3b-TYPE.gguf in `folder`."""

    def __init__(self, folder):
        self.folder = pathlib.Path(folder)
        self.checkpoint = self.folder / NAME

    def gguf(self, kind):
        return self.folder / f"{NAME}-{kind}.gguf"

    def ours(self, kind):
        """What `switchyard serve` is given: bf16 as published, the others as GGUF."""
        return self.checkpoint if kind == "bf16" else self.gguf(kind)

    def missing(self, kinds):
        paths = [self.checkpoint / "config.json", *map(self.gguf, kinds)]
        return [p for p in paths if not p.exists()]

    def make(self, peer):
        """What is not there yet, in some minutes and 20 GB."""
        if not (self.checkpoint / "config.json").exists():
            _run(sys.executable, MAKERS / "make_random_model.py", "--shape", "bench", "--out", self.checkpoint)
        if not self.gguf("bf16").exists():
            _run(sys.executable, MAKERS / "to_gguf.py", self.checkpoint, self.gguf("bf16"))
        for kind in TYPES[1:]:
            if not self.gguf(kind).exists():
                part = self.gguf(kind).with_suffix(".part")
                _run(peer.tool("llama-quantize"), self.gguf("bf16"), part, kind)
                part.rename(self.gguf(kind))
        print(f"models: {', '.join(TYPES)} lie in {self.folder}")


def _run(*command):
    try:
        subprocess.run([str(c) for c in command], check=True)
    except subprocess.CalledProcessError as e:
        raise peers.PeerError(f"{command[0]} ended with status {e.returncode}; its message stands above") from None


def stored_bytes(path):
    """Of a GGUF file, or of all safetensors of a directory."""
    return sum(f.stat().st_size for f in path.glob("*.safetensors")) if path.is_dir() else path.stat().st_size


def largest_file(path):
    """The GGUF file, or the largest safetensors of a directory."""
    return max(path.glob("*.safetensors"), key=lambda f: f.stat().st_size) if path.is_dir() else path


def tensor_sizes(path):
    """{name: (shape, bytes)} of a checkpoint directory or a GGUF file."""
    return safetensors_sizes(path) if path.is_dir() else gguf_sizes(path)


def safetensors_sizes(directory):
    out = {}
    for path in sorted(directory.glob("*.safetensors")):
        with open(path, "rb") as f:
            header = json.loads(f.read(struct.unpack("<Q", f.read(8))[0]))
        for name, t in header.items():
            if name != "__metadata__":
                out[name] = t["shape"], t["data_offsets"][1] - t["data_offsets"][0]
    return out


# Of GGUF: struct codes of scalars by type, and (bytes, values) of a block by tensor type.
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
BLOCKS = {0: (4, 1), 1: (2, 1), 2: (18, 32), 8: (34, 32), 12: (144, 256), 13: (176, 256), 14: (210, 256), 30: (2, 1), 39: (17, 32)}


class _Reader:
    def __init__(self, file):
        self.file = file

    def number(self, code):
        return struct.unpack("<" + code, self.file.read(struct.calcsize("<" + code)))[0]

    def string(self):
        return self.file.read(self.number("Q")).decode()

    def skip_value(self, kind):
        if kind == STRING:
            self.string()
        elif kind == ARRAY:
            of, count = self.number("I"), self.number("Q")
            for _ in range(count):
                self.skip_value(of)
        else:
            self.number(SCALARS[kind])


def gguf_sizes(path):
    out = {}
    with open(path, "rb") as file:
        r = _Reader(file)
        if file.read(4) != b"GGUF":
            raise ValueError(f"{path} is no GGUF file")
        r.number("I")
        tensors, entries = r.number("Q"), r.number("Q")
        for _ in range(entries):
            r.string()
            r.skip_value(r.number("I"))
        for _ in range(tensors):
            name = r.string()
            shape = [r.number("Q") for _ in range(r.number("I"))]
            block_bytes, block_values = BLOCKS[r.number("I")]
            r.number("Q")
            values = 1
            for n in shape:
                values *= n
            out[name] = shape[::-1], values // block_values * block_bytes
    return out


def active_bytes(sizes, config):
    """Bytes of weights that one decoded token reads: all but the table of embeddings, and of the experts its top k."""
    share = config["num_experts_per_tok"] / config["n_routed_experts"]
    total = 0.0
    for name, (_, size) in sizes.items():
        if "embed_tokens" in name or "token_embd" in name:
            continue
        total += size * share if ".experts." in name or "_exps." in name else size
    return total


def prefill_flops(config, tokens):
    """Multiplications and additions that a prompt needs: matrices of all layers, causal attention, one row of logits."""
    c = config
    h, heads, layers = c["hidden_size"], c["num_attention_heads"], c["num_hidden_layers"]
    qk = c["qk_nope_head_dim"] + c["qk_rope_head_dim"]
    attention = (h * c["q_lora_rank"] + c["q_lora_rank"] * heads * qk + h * (c["kv_lora_rank"] + c["qk_rope_head_dim"])
                 + c["kv_lora_rank"] * heads * (c["qk_nope_head_dim"] + c["v_head_dim"]) + heads * c["v_head_dim"] * h)
    dense = c["first_k_dense_replace"]
    experts = c["num_experts_per_tok"] + c["n_shared_experts"]
    ffn = 3 * h * (dense * c["intermediate_size"] + (layers - dense) * experts * c["moe_intermediate_size"])
    gate = (layers - dense) * h * c["n_routed_experts"]
    pairs = tokens * (tokens + 1) / 2  # a token and those it sees
    scores = layers * heads * pairs * (qk + c["v_head_dim"])
    return 2 * (tokens * (layers * attention + ffn + gate) + scores + h * c["vocab_size"])
