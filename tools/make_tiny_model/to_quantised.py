#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Write a small Hugging Face checkpoint with quantised weights, as the tools that publish such checkpoints lay them out.

    python3 tools/make_tiny_model/to_quantised.py --scheme int4 --group 32 tests/golden/models/olmoe-tiny build/olmoe-int4
    python3 tools/make_tiny_model/to_quantised.py --scheme int8 --float build/olmoe-int8-float tests/golden/models/olmoe-tiny build/olmoe-int8

Weights are rounded to the nearest value, nothing more: this is for tests of the layouts. int4-q4_0 takes scales as GGUF's Q4_0 does, so
that the number of largest magnitude becomes -8. --float also writes the checkpoint of
float32 weights that the quantised ones stand for. Needs nothing but Python, and patience with more than a few million weights.
"""
import argparse
import array
import bisect
import json
import math
import pathlib
import struct

import safetensors_dir

BITS = {"BF16": ("H", 2), "F16": ("e", 2), "F32": ("f", 4)}


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


def transposed(matrix, rows, columns):
    return [x for k in range(columns) for x in matrix[k:rows * columns:columns]]


def nearest(values, x):
    """Index of the nearest of ascending values."""
    at = bisect.bisect_left(values, x)
    if at == 0 or at < len(values) and values[at] - x < x - values[at - 1]:
        return at
    return at - 1


class Integers:
    """compressed-tensors: int8 and int4."""

    def __init__(self, bits, group, zeros, scale_dtype, q4_0=False):
        self.bits, self.group, self.zeros, self.scale_dtype, self.q4_0 = bits, group, zeros, scale_dtype, q4_0
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
        if self.q4_0:
            scale = rounded(max(w, key=abs) / self.low, self.scale_dtype) or 1e-6
            zero = 0
        elif not self.zeros:
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


class Packed(Integers):
    """GPTQ and AWQ: int4 in words of the transposed matrix, always with zero points."""

    def __init__(self, method, group, zeros, scale_dtype):
        super().__init__(4, group, zeros, scale_dtype)
        self.method = method

    def config(self):
        if self.method == "awq":
            return {"quant_method": "awq", "bits": 4, "group_size": self.group or -1, "zero_point": True, "version": "gemm", "modules_to_not_convert": None}
        return {"quant_method": "gptq", "bits": 4, "group_size": self.group or -1, "desc_act": False, "sym": not self.zeros, "static_groups": False,
                "checkpoint_format": "gptq" if self.method == "gptq" else "gptq_v2"}

    def tensors(self, module, w, shape):
        rows, columns = shape
        assert rows % 8 == 0
        elements, scales, zeros, values = self.quantise(w, rows, columns)
        groups = len(scales) // rows
        elements = [c + 8 for c in elements]
        zeros = transposed([z + 8 - (self.method == "gptq") for z in zeros], rows, groups)
        by_column = transposed(elements, rows, columns)
        out = {}
        if self.method == "awq":
            order = (0, 2, 4, 6, 1, 3, 5, 7)
            shuffled = lambda x: [x[at + o] for at in range(0, len(x), 8) for o in order]
            out[module + ".qweight"] = "I32", [columns, rows // 8], words(shuffled(by_column))
            out[module + ".qzeros"] = "I32", [groups, rows // 8], words(shuffled(zeros))
        else:
            eights = [by_column[(k + j) * rows + r] for k in range(0, columns, 8) for r in range(rows) for j in range(8)]
            out[module + ".qweight"] = "I32", [columns // 8, rows], words(eights)
            out[module + ".qzeros"] = "I32", [groups, rows // 8], words(zeros)
            size = self.group or columns
            out[module + ".g_idx"] = "I32", [columns], struct.pack(f"<{columns}i", *(k // size for k in range(columns)))
        out[module + ".scales"] = self.scale_dtype, [groups, rows], stored(transposed(scales, rows, groups), self.scale_dtype)
        return out, values


class Fp8:
    """DeepSeek's FP8: E4M3 with a float32 scale for each block of rows and columns."""

    POSITIVE = [(m if e == 0 else 8 + m) * 2.0 ** (max(e, 1) - 10) for e in range(16) for m in range(8)][:127]

    def __init__(self, block_rows):
        self.block_rows = block_rows

    def config(self):
        return {"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3", "weight_block_size": [self.block_rows, 128]}

    def tensors(self, module, w, shape):
        rows, columns = shape
        block_columns = -(-columns // 128)
        scales = [[0.0] * block_columns for _ in range(-(-rows // self.block_rows))]
        for r in range(rows):
            for b in range(block_columns):
                largest = max(map(abs, w[r * columns + b * 128:min((r + 1) * columns, r * columns + (b + 1) * 128)]))
                scales[r // self.block_rows][b] = max(scales[r // self.block_rows][b], largest)
        scales = [[rounded(max(x / 448, 1e-12), "F32") for x in row] for row in scales]
        codes, values = bytearray(), array.array("f")
        for i, x in enumerate(w):
            scale = scales[i // columns // self.block_rows][i % columns // 128]
            code = nearest(self.POSITIVE, abs(x) / scale)
            codes.append(code | (0x80 if x < 0 else 0))
            values.append(math.copysign(self.POSITIVE[code] * scale, x))
        return {module + ".weight": ("F8_E4M3", shape, bytes(codes)),
                module + ".weight_scale_inv": ("F32", [len(scales), block_columns], stored(sum(scales, []), "F32"))}, values


class Mxfp4:
    """gpt-oss: stacked experts, transposed, in blocks of 32 E2M1 with a power of two."""

    POSITIVE = [0, 0.5, 1, 1.5, 2, 3, 4, 6]

    def config(self):
        return {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "model.layers.*.mlp.router", "lm_head"]}

    def tensors(self, module, w, shape):
        experts, inputs, outputs = shape
        nibbles, exponents, values = [], bytearray(), array.array("f")
        for e in range(experts):
            one = transposed(w[e * inputs * outputs:(e + 1) * inputs * outputs], inputs, outputs)
            widened = []
            for at in range(0, len(one), 32):
                piece = one[at:at + 32]
                exponent = math.frexp(max(max(map(abs, piece)), 1e-30))[1] - 3
                exponents.append(exponent + 127)
                for x in piece:
                    code = nearest(self.POSITIVE, abs(x) * 2.0 ** -exponent)
                    nibbles.append(code | (8 if x < 0 else 0))
                    widened.append(math.copysign(self.POSITIVE[code], x) * 2.0 ** exponent)
            values.extend(transposed(widened, outputs, inputs))
        return {module + "_blocks": ("U8", [experts, outputs, inputs // 32, 16], words(nibbles)),
                module + "_scales": ("U8", [experts, outputs, inputs // 32], bytes(exponents))}, values


def scheme_of(args):
    if args.scheme == "fp8":
        return Fp8(args.block_rows)
    if args.scheme == "mxfp4":
        return Mxfp4()
    if args.scheme == "int8":
        return Integers(8, args.group, False, args.scales)
    if args.scheme.startswith("int4"):
        return Integers(4, args.group, args.scheme == "int4-zeros", args.scales, args.scheme == "int4-q4_0")
    return Packed(args.scheme.removesuffix("-sym"), args.group, not args.scheme.endswith("-sym"), args.scales)


LINEAR = ("_proj.weight", "_proj_with_mqa.weight", ".w1.weight", ".w2.weight", ".w3.weight")


def quantises(args, name, shape):
    """Gates are left as they are, and rows that are no whole groups."""
    if args.scheme == "mxfp4":
        return name.endswith((".experts.gate_up_proj", ".experts.down_proj"))
    if not name.endswith(LINEAR):
        return False
    return args.scheme == "fp8" or shape[1] % (args.group or 32) == 0


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--scheme", choices=["int8", "int4", "int4-q4_0", "int4-zeros", "gptq", "gptq-sym", "gptq_v2", "awq", "fp8", "mxfp4"], required=True)
    parser.add_argument("--group", type=int, default=0, help="columns that share a scale; 0: a whole row")
    parser.add_argument("--block-rows", type=int, default=128, help="of fp8")
    parser.add_argument("--scales", choices=list(BITS), default="BF16")
    parser.add_argument("--float", type=pathlib.Path, help="where the same weights go in float32")
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    args = parser.parse_args()
    scheme = scheme_of(args)
    quantised, plain = {}, {}
    for name, (shape, dtype, mapped) in safetensors_dir.read(args.model).items():
        data = bytes(mapped)
        if not quantises(args, name, shape):
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
