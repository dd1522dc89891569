#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Write a small Hugging Face checkpoint with quantised weights, as the tools that publish such checkpoints lay them out.

    python3 tools/make_tiny_model/to_quantised.py --scheme int4 --group 32 tests/golden/models/olmoe-tiny build/olmoe-int4
    python3 tools/make_tiny_model/to_quantised.py --scheme int8 --float build/olmoe-int8-float tests/golden/models/olmoe-tiny build/olmoe-int8

Weights are rounded to the nearest value, nothing more: this is for tests of the layouts. --float also writes the checkpoint of
float32 weights that the quantised ones stand for. Needs nothing but Python, and patience with more than a few million weights.
"""
import argparse
import array
import json
import mmap
import pathlib
import struct

BITS = {"BF16": ("H", 2), "F16": ("e", 2), "F32": ("f", 4)}


def read(directory):
    """Name → (dtype, shape, bytes)."""
    tensors = {}
    for path in sorted(directory.glob("*.safetensors")):
        with open(path, "rb") as f:
            data = memoryview(mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ))
        size = struct.unpack("<Q", data[:8])[0]
        for name, t in json.loads(bytes(data[8:8 + size])).items():
            if name != "__metadata__":
                begin, end = t["data_offsets"]
                tensors[name] = t["dtype"], t["shape"], bytes(data[8 + size + begin:8 + size + end])
    return tensors


def write(directory, source, tensors, quantization):
    directory.mkdir(parents=True, exist_ok=True)
    header, at = {}, 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(directory / "model.safetensors", "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        for _, _, data in tensors.values():
            f.write(data)
    for path in source.glob("*.json"):
        (directory / path.name).write_bytes(path.read_bytes())
    config = json.loads((source / "config.json").read_text())
    config.pop("quantization_config", None)
    if quantization:
        config["quantization_config"] = quantization
    (directory / "config.json").write_text(json.dumps(config, indent=2))


def floats(dtype, data):
    if dtype == "BF16":
        wide = array.array("I", (bits << 16 for bits in array.array("H", data)))
        return array.array("f", wide.tobytes())
    if dtype == "F16":
        return array.array("f", (x for x, in struct.iter_unpack("<e", data)))
    return array.array("f", data)


def rounded(x, dtype):
    """x as the dtype stores it."""
    if dtype == "BF16":
        bits = struct.unpack("<I", struct.pack("<f", x))[0]
        return struct.unpack("<f", struct.pack("<I", (bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000))[0]
    return struct.unpack("<" + BITS[dtype][0], struct.pack("<" + BITS[dtype][0], x))[0]


def stored(values, dtype):
    if dtype == "BF16":
        return b"".join(struct.pack("<f", x)[2:] for x in values)
    return struct.pack(f"<{len(values)}{BITS[dtype][0]}", *values)


def words(nibbles):
    """Eight nibbles a word, from the lowest on."""
    out = array.array("I")
    for i in range(0, len(nibbles), 8):
        word = 0
        for j, nibble in enumerate(nibbles[i:i + 8]):
            word |= nibble << 4 * j
        out.append(word)
    return out.tobytes()


def column(matrix, rows, columns, k):
    return [matrix[r * columns + k] for r in range(rows)]


class Integers:
    """compressed-tensors: int8 and int4."""

    def __init__(self, bits, group, zeros, scale_dtype):
        self.bits, self.group, self.zeros, self.scale_dtype = bits, group, zeros, scale_dtype
        self.low, self.high = -(1 << bits - 1), (1 << bits - 1) - 1

    def config(self):
        weights = {"num_bits": self.bits, "type": "int", "symmetric": not self.zeros, "strategy": "group" if self.group else "channel",
                   "group_size": self.group or None, "dynamic": False, "actorder": None}
        activations = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True} if self.bits == 8 else None
        return {"quant_method": "compressed-tensors", "format": "int-quantized" if self.bits == 8 else "pack-quantized",
                "quantization_status": "compressed", "ignore": ["lm_head"], "kv_cache_scheme": None,
                "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights, "input_activations": activations}}}

    def piece(self, w):
        """Scale, zero point and elements of weights that share them; signed, as the tool has them."""
        if not self.zeros:
            scale = rounded(max(max(map(abs, w)) / self.high, 1e-6), self.scale_dtype)
            zero = 0
        else:
            low, high = min(min(w), 0.0), max(max(w), 0.0)
            scale = rounded(max((high - low) / (self.high - self.low), 1e-6), self.scale_dtype)
            zero = min(max(self.low - round(low / scale), self.low), self.high)
        return scale, zero, [min(max(round(x / scale) + zero, self.low), self.high) for x in w]

    def quantise(self, w, rows, columns):
        """Elements [rows, columns], scales and zeros [rows, groups], and what they stand for."""
        size = self.group or columns
        elements, scales, zeros, values = [], [], [], array.array("f")
        for at in range(0, rows * columns, size):
            scale, zero, c = self.piece(w[at:at + size])
            elements += c
            scales.append(scale)
            zeros.append(zero)
            values.extend([scale * (x - zero) for x in c])
        return elements, scales, zeros, values

    def tensors(self, module, w, shape):
        rows, columns = shape
        elements, scales, zeros, values = self.quantise(w, rows, columns)
        groups = len(scales) // rows
        out = {}
        if self.bits == 8:
            out[module + ".weight"] = "I8", shape, array.array("b", elements).tobytes()
        else:
            out[module + ".weight_packed"] = "I32", [rows, columns // 8], words([c + 8 for c in elements])
            out[module + ".weight_shape"] = "I64", [2], struct.pack("<qq", rows, columns)
        out[module + ".weight_scale"] = self.scale_dtype, [rows, groups], stored(scales, self.scale_dtype)
        if self.zeros:
            padded = [z + 8 for z in zeros] + [0] * (-rows % 8 * groups)
            by_word = [padded[(r + j) * groups + g] for r in range(0, rows, 8) for g in range(groups) for j in range(8)]
            out[module + ".weight_zero_point"] = "I32", [(rows + 7) // 8, groups], words(by_word)
        return out, values


def scheme_of(args):
    if args.scheme == "int8":
        return Integers(8, args.group, False, args.scales)
    return Integers(4, args.group, args.scheme == "int4-zeros", args.scales)


LINEAR = ("_proj.weight", "_proj_with_mqa.weight", ".w1.weight", ".w2.weight", ".w3.weight")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--scheme", choices=["int8", "int4", "int4-zeros"], required=True)
    parser.add_argument("--group", type=int, default=0, help="columns that share a scale; 0: a whole row")
    parser.add_argument("--scales", choices=list(BITS), default="BF16")
    parser.add_argument("--float", type=pathlib.Path, help="where the same weights go in float32")
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    args = parser.parse_args()
    scheme = scheme_of(args)
    quantised, plain = {}, {}
    for name, (dtype, shape, data) in read(args.model).items():
        if not name.endswith(LINEAR) or shape[1] % (args.group or 32) != 0:  # gates are left as they are
            quantised[name] = plain[name] = dtype, shape, data
            continue
        tensors, values = scheme.tensors(name.removesuffix(".weight"), floats(dtype, data), shape)
        quantised |= tensors
        plain[name] = "F32", shape, values.tobytes()
    write(args.out, args.model, quantised, scheme.config())
    if args.float:
        write(args.float, args.model, plain, None)


if __name__ == "__main__":
    main()
