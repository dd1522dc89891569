# SPDX-License-Identifier: Apache-2.0
"""The figures, what they must reach, and how they are made of the programs' lines. Pure."""
import dataclasses
import math


class Missing(Exception):
    """Why a figure has no value."""


@dataclasses.dataclass(frozen=True)
class Figure:
    name: str
    what: str
    numerator: str
    denominator: str
    target: float
    needs: tuple  # programs
    at_most: bool = False

    def reached(self, value):
        if value is None:
            return None
        return value <= self.target if self.at_most else value >= self.target


BANDWIDTH = "bytes/s of a plain kernel over 4 GB in the same run, the better of reading and copying"
DECODE_BYTES = "bytes of the experts that have rows, of rows and of answers, once each, / time of the frame's kernels; the lowest of the shapes"
FIGURES = {f.name: f for f in [
    Figure("decode_bf16_bandwidth_share", "decode-shaped grouped FFN, DeepSeek-V3's experts, bf16", DECODE_BYTES, BANDWIDTH, 0.85,
           ("limits", "ffn_bf16")),
    Figure("decode_fp8_bandwidth_share", "the same, e4m3 with scales of 128 x 128", DECODE_BYTES, BANDWIDTH, 0.85, ("limits", "ffn_e4m3")),
    Figure("prefill_bf16_cublas_share", "grouped FFN of 4096 to 16384 rows over 8 experts, bf16",
           "multiplications and additions / time; the lowest of the shapes",
           "FLOP/s of cuBLASLt's best algorithm for a square product of bf16 in the same run", 0.75, ("limits", "ffn_bf16")),
    Figure("prefill_fp8_over_bf16", "the same, e4m3 against bf16", "our time with bf16", "our time with e4m3; the lowest of the shapes", 1.6,
           ("ffn_bf16", "ffn_e4m3")),
    Figure("fused_moe_geomean_ratio", "against Triton's fused MoE, bf16 and e4m3", "its time (products, activation, sums; not its sorting, which in ours is the host's)",
           "ours of the same shape; geometric mean over shapes", 1.1, ("ffn_bf16", "ffn_e4m3", "triton")),
    Figure("mla_decode_roofline_share", "MLA decode, paged, 64 sequences of 8192, 128 heads",
           "the larger of bytes / bandwidth and FLOP / cuBLASLt's FLOP/s", "time", 0.65, ("limits", "mla")),
    Figure("mla_decode16_bandwidth_share", "the same with 16 heads", "bytes of keys, queries and answers / time", BANDWIDTH, 0.75,
           ("limits", "mla")),
    Figure("embedded_decode_bandwidth_share", "decode step of a model of DeepSeek-V2-Lite's shape, 1 stream and 64: its kernels as a graph",
           "bytes of the weights in use and of the cache / time; the lower of both", BANDWIDTH, 0.7, ("limits", "decode")),
    Figure("frame_ratio", "64 rows of 7168 over 32 experts, from memory shared with another process through the device and back",
           "time of the whole; the higher of bf16 and e4m3", "copy in + kernels + copy out, each alone", 1.5, ("frame_bf16", "frame_e4m3"), at_most=True),
]}

# rows:experts:experts of a row
DECODE = ("8:32:8", "32:32:8", "128:32:8", "32:64:8", "128:128:8", "8:256:8", "128:256:8")
PREFILL = ("4096:8:1", "8192:8:1", "16384:8:1")
QUICK = {"8:32:8", "128:32:8", "4096:8:1", "16384:8:1"}


def shapes(quick):
    return [s for s in DECODE + PREFILL if not quick or s in QUICK]


def shape_of(line):
    return f"{line['rows']}:{line['experts']}:{line['top_k']}"


def geomean(values):
    return math.exp(sum(map(math.log, values)) / len(values))


def named(lines, kind, **like):
    """Lines of a kind that were measured, or why there are none."""
    found = [x for x in lines if x["kind"] == kind and all(x.get(k) == v for k, v in like.items())]
    measured = [x for x in found if "reason" not in x]
    if not measured:
        raise Missing(found[0]["reason"] if found else f"nothing was measured of {kind}")
    return measured


def bandwidth(lines):
    """Bytes/s."""
    return max(max(x["read_gb_s"], x["copy_gb_s"]) for x in named(lines, "memory")) * 1e9


def dense_peak(lines):
    """FLOP/s."""
    return max(x["bf16_tflop_s"] for x in named(lines, "cublaslt")) * 1e12


def ffn(lines, kind, fmt, wanted):
    found = {shape_of(x): x for x in named(lines, kind, format=fmt) if shape_of(x) in wanted}
    if not found:
        raise Missing(f"no shape of {fmt} was measured")
    return found


def decode_share(lines, fmt):
    limit = bandwidth(lines)
    return min, {s: x["bytes"] / (x["ms"] / 1e3) / limit for s, x in ffn(lines, "ffn", fmt, DECODE).items()}


def prefill_share(lines):
    peak = dense_peak(lines)
    return min, {s: x["flop"] / (x["ms"] / 1e3) / peak for s, x in ffn(lines, "ffn", "bf16", PREFILL).items()}


def both(ours, theirs):
    shared = [s for s in ours if s in theirs]
    if not shared:
        raise Missing("no shape was measured on both sides")
    return {s: ours[s]["ms"] / theirs[s]["ms"] for s in shared}


def fp8_over_bf16(lines):
    return min, both(ffn(lines, "ffn", "bf16", PREFILL), ffn(lines, "ffn", "e4m3", PREFILL))


def fused_moe(lines):
    ratios, why = {}, None
    for fmt in ("bf16", "e4m3"):
        try:
            found = both(ffn(lines, "triton", fmt, DECODE + PREFILL), ffn(lines, "ffn", fmt, DECODE + PREFILL))
            ratios.update({f"{fmt} {s}": r for s, r in found.items()})
        except Missing as e:
            why = e
    if not ratios:
        raise why
    return lambda values: geomean(list(values)), ratios


def mla_share(lines, heads):
    limit = bandwidth(lines)
    (x,) = named(lines, "mla", heads=heads)[:1]
    floor = x["bytes"] / limit
    if heads == 128:
        floor = max(floor, x["flop"] / dense_peak(lines))
    return min, {f"{heads} heads": floor / (x["ms"] / 1e3)}


def embedded_share(lines):
    limit = bandwidth(lines)
    found = named(lines, "decode")
    if {x["streams"] for x in found} != {1, 64}:
        raise Missing("one stream and 64 are wanted: " + next((x["reason"] for x in lines if x["kind"] == "decode" and "reason" in x), "not both ran"))
    return min, {f"{x['streams']} streams": x["bytes"] / (x["ms"] / 1e3) / limit for x in found}


def frame(lines):
    return max, {x["format"]: x["ms"] / (x["copy_in_ms"] + x["compute_ms"] + x["copy_out_ms"]) for x in named(lines, "frame")}


HOW = {
    "decode_bf16_bandwidth_share": lambda lines: decode_share(lines, "bf16"),
    "decode_fp8_bandwidth_share": lambda lines: decode_share(lines, "e4m3"),
    "prefill_bf16_cublas_share": prefill_share,
    "prefill_fp8_over_bf16": fp8_over_bf16,
    "fused_moe_geomean_ratio": fused_moe,
    "mla_decode_roofline_share": lambda lines: mla_share(lines, 128),
    "mla_decode16_bandwidth_share": lambda lines: mla_share(lines, 16),
    "embedded_decode_bandwidth_share": embedded_share,
    "frame_ratio": frame,
}


def result(figure, lines, reasons):
    """One entry of the JSON. `reasons`: why a program gave nothing, by its name."""
    value, parts, reason = None, {}, None
    try:
        fold, parts = HOW[figure.name](lines)
        value = fold(parts.values())
    except Missing as e:
        reason = next((reasons[p] for p in figure.needs if p in reasons), str(e))
    entry = {"value": value, "unit": "ratio", "target": figure.target, "at_most": figure.at_most, "reached": figure.reached(value),
             "what": figure.what, "numerator": figure.numerator, "denominator": figure.denominator, "shapes": parts}
    if reason is not None:
        entry["reason"] = reason
    return entry


def results(names, lines, reasons):
    return {name: result(FIGURES[name], lines, reasons) for name in names}
