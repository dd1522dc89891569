# SPDX-License-Identifier: Apache-2.0
"""The peer: a fused MoE in Triton of the kind that serving engines have. triton_moe.py ROWS:EXPERTS:TOP_K... prints a line of JSON for
each shape and format, of DeepSeek-V3's experts (7168 x 2048).

Rows are sorted by expert and each expert's padded to whole blocks; a program computes a block of rows by a block of outputs of the expert
that its block belongs to. Gate and up, activation, down, weighted sums; with e4m3, rows are rounded a group of 128 at a time before each
product. The sorting is not in the time, as in ours it is the host's. Where vLLM is installed, its own fused MoE is measured for bf16 and
the faster of both counts. Block sizes are tried out for each shape.
"""
import importlib.util
import json
import statistics
import sys

HIDDEN, INTERMEDIATE, GROUP = 7168, 2048, 128


def say(**line):
    print(json.dumps(line), flush=True)


def shape_of(text):
    rows, experts, top_k = map(int, text.split(":"))
    return {"rows": rows, "experts": experts, "top_k": top_k}


MISSING = [name for name in ("torch", "triton") if importlib.util.find_spec(name) is None]
if MISSING:
    for fmt in ("bf16", "e4m3"):
        say(kind="triton", format=fmt, reason=f"{' and '.join(MISSING)} of Python not installed")
    sys.exit(0)

import torch  # noqa: E402
import triton  # noqa: E402
import triton.language as tl  # noqa: E402


@triton.jit
def grouped_product(x, w, y, x_scales, w_scales, order, block_expert, padded, weights, outputs, inputs, pairs,
                    x_stride, w_expert_stride, w_row_stride, y_stride, xs_stride, ws_expert_stride, ws_row_stride,
                    rows_a_pair: tl.constexpr, weigh: tl.constexpr, e4m3: tl.constexpr,
                    block_m: tl.constexpr, block_n: tl.constexpr, block_k: tl.constexpr, group_m: tl.constexpr):
    # Programs that share weights are neighbours.
    program = tl.program_id(0)
    blocks_m, blocks_n = tl.cdiv(tl.load(padded), block_m), tl.cdiv(outputs, block_n)
    if program >= blocks_m * blocks_n:
        return
    in_group = group_m * blocks_n
    first_m = program // in_group * group_m
    size_m = min(blocks_m - first_m, group_m)
    at_m = first_m + program % in_group % size_m
    at_n = program % in_group // size_m
    slots = tl.load(order + at_m * block_m + tl.arange(0, block_m))
    there = slots < pairs
    rows = (slots // rows_a_pair).to(tl.int64)
    expert = tl.load(block_expert + at_m).to(tl.int64)
    n = (at_n * block_n + tl.arange(0, block_n)) % outputs
    k = tl.arange(0, block_k)
    x_at = x + rows[:, None] * x_stride + k[None, :]
    w_at = w + expert * w_expert_stride + n[None, :] * w_row_stride + k[:, None]
    total = tl.zeros((block_m, block_n), dtype=tl.float32)
    for step in range(0, tl.cdiv(inputs, block_k)):
        a = tl.load(x_at, mask=there[:, None], other=0.0)
        b = tl.load(w_at)
        if e4m3:  # block_k is a group
            a_scale = tl.load(x_scales + rows * xs_stride + step, mask=there, other=0.0)
            b_scale = tl.load(w_scales + expert * ws_expert_stride + n // 128 * ws_row_stride + step)
            total += tl.dot(a, b) * a_scale[:, None] * b_scale[None, :]
        else:
            total = tl.dot(a, b, total)
        x_at += block_k
        w_at += block_k
    if weigh:
        total *= tl.load(weights + slots, mask=there, other=0.0)[:, None]
    columns = at_n * block_n + tl.arange(0, block_n)
    tl.store(y + slots[:, None].to(tl.int64) * y_stride + columns[None, :], total.to(y.dtype.element_ty),
             mask=there[:, None] & (columns[None, :] < outputs))


@triton.jit
def silu_and_multiply(x, y, width, block: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * block + tl.arange(0, block)
    inside = at < width
    gate = tl.load(x + row * 2 * width + at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(x + row * 2 * width + width + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + row * width + at, (gate / (1.0 + tl.exp(-gate)) * up).to(y.dtype.element_ty), mask=inside)


@triton.jit
def to_e4m3(x, y, scales, groups, group: tl.constexpr):
    at = tl.program_id(0).to(tl.int64)
    k = tl.arange(0, group)
    values = tl.load(x + at * group + k).to(tl.float32)
    scale = tl.maximum(tl.max(tl.abs(values)), 1e-10) / 448.0
    tl.store(y + at * group + k, (values / scale).to(y.dtype.element_ty))
    tl.store(scales + at, scale)


@triton.jit
def sum_of_pairs(x, y, hidden, top_k: tl.constexpr, block: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * block + tl.arange(0, block)
    inside = at < hidden
    total = tl.zeros((block,), dtype=tl.float32)
    for k in range(top_k):
        total += tl.load(x + (row * top_k + k) * hidden + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + row * hidden + at, total.to(y.dtype.element_ty), mask=inside)


@triton.jit
def places(ids, first, filled, order, pairs, block: tl.constexpr):
    # A pair's place behind those of its expert that came before it; which of them came first does not matter.
    pair = tl.program_id(0) * block + tl.arange(0, block)
    inside = pair < pairs
    expert = tl.load(ids + pair, mask=inside, other=0)
    place = tl.load(first + expert, mask=inside, other=0) + tl.atomic_add(filled + expert, 1, mask=inside)
    tl.store(order + place, pair, mask=inside)


class Layer:
    """A layer's weights, and the buffers of one shape."""

    def __init__(self, fmt, experts):
        self.fmt, self.experts = fmt, experts
        self.gate_up, self.gate_up_scales = self.random(2 * INTERMEDIATE, HIDDEN)
        self.down, self.down_scales = self.random(HIDDEN, INTERMEDIATE)

    def random(self, rows, columns):
        dtype = torch.bfloat16 if self.fmt == "bf16" else torch.float8_e4m3fn
        w = torch.empty(self.experts, rows, columns, dtype=dtype, device="cuda")
        for e in range(self.experts):
            w[e] = (torch.randn(rows, columns, device="cuda", dtype=torch.bfloat16) * (0.02 if self.fmt == "bf16" else 20)).to(dtype)
        scales = None if self.fmt == "bf16" else torch.full((self.experts, rows // GROUP, columns // GROUP), 1e-3, device="cuda")
        return w, scales

    def shape(self, rows, experts, top_k, block_m):
        pairs = rows * top_k
        most = pairs + min(experts, pairs) * (block_m - 1)
        self.rows, self.used, self.top_k, self.pairs, self.block_m = rows, experts, top_k, pairs, block_m
        self.most_blocks = triton.cdiv(most, block_m)
        new = dict(device="cuda", dtype=torch.int32)
        self.order, self.block_expert = torch.empty(self.most_blocks * block_m, **new), torch.zeros(self.most_blocks, **new)
        self.block_numbers = torch.arange(self.most_blocks, **new)
        bf16 = dict(device="cuda", dtype=torch.bfloat16)
        self.both, self.inner = torch.empty(pairs, 2 * INTERMEDIATE, **bf16), torch.empty(pairs, INTERMEDIATE, **bf16)
        self.y, self.out = torch.empty(pairs, HIDDEN, **bf16), torch.empty(rows, HIDDEN, **bf16)

    def sort(self, ids):
        """Pairs by expert, each expert's padded to whole blocks."""
        counts = torch.zeros(self.used, device="cuda", dtype=torch.int32)
        counts.scatter_add_(0, ids, torch.ones_like(ids, dtype=torch.int32))
        blocks = (counts + self.block_m - 1) // self.block_m
        ends = torch.cumsum(blocks, 0, dtype=torch.int32)
        first = (ends - blocks) * self.block_m
        self.padded = ends[-1:] * self.block_m
        self.block_expert.copy_(torch.searchsorted(ends, self.block_numbers, right=True).clamp_(max=self.used - 1))
        self.order.fill_(self.pairs)
        places[(triton.cdiv(self.pairs, 256),)](ids, first, torch.zeros_like(first), self.order, self.pairs, block=256)

    def rounded(self, x):
        if self.fmt == "bf16":
            return x, None
        y = torch.empty(x.shape, device="cuda", dtype=torch.float8_e4m3fn)
        scales = torch.empty(x.shape[0], x.shape[1] // GROUP, device="cuda")
        to_e4m3[(scales.numel(),)](x, y, scales, x.shape[1] // GROUP, group=GROUP)
        return y, scales

    def product(self, x, w, scales, y, rows_a_pair, weights, config):
        x, x_scales = self.rounded(x)
        grid = (self.most_blocks * triton.cdiv(w.shape[1], config["block_n"]),)
        none = x if x_scales is None else x_scales
        grouped_product[grid](
            x, w, y, none, none if scales is None else scales, self.order, self.block_expert, self.padded,
            x if weights is None else weights, w.shape[1], w.shape[2], self.pairs, x.stride(0), w.stride(0), w.stride(1), y.stride(0),
            0 if x_scales is None else x_scales.stride(0), 0 if scales is None else scales.stride(0), 0 if scales is None else scales.stride(1),
            rows_a_pair=rows_a_pair, weigh=weights is not None, e4m3=self.fmt == "e4m3", **config)

    def forward(self, x, weights, config):
        """Of the ids that were sorted last."""
        self.product(x, self.gate_up, self.gate_up_scales, self.both, self.top_k, None, config)
        silu_and_multiply[(self.pairs, triton.cdiv(INTERMEDIATE, 1024))](self.both, self.inner, INTERMEDIATE, block=1024)
        self.product(self.inner, self.down, self.down_scales, self.y, 1, weights, config)
        sum_of_pairs[(self.rows, triton.cdiv(HIDDEN, 1024))](self.y, self.out, HIDDEN, top_k=self.top_k, block=1024)
        return self.out

    def reference(self, x, ids, weights, row):
        """Of one row, in float32."""
        def matrix(w, scales, e):
            m = w[e].float()
            return m if scales is None else m * scales[e].repeat_interleave(GROUP, 0).repeat_interleave(GROUP, 1)
        total = torch.zeros(HIDDEN, device="cuda")
        for k in range(self.top_k):
            e = int(ids[row * self.top_k + k])
            both = matrix(self.gate_up, self.gate_up_scales, e) @ x[row].float()
            inner = torch.nn.functional.silu(both[:INTERMEDIATE]) * both[INTERMEDIATE:]
            total += weights[row * self.top_k + k] * (matrix(self.down, self.down_scales, e) @ inner)
        return total


def configs(fmt, rows_an_expert):
    """Block sizes that may be the best for so many rows."""
    ms = [16, 32] if rows_an_expert <= 16 else [32, 64] if rows_an_expert <= 64 else [64, 128]
    for m in ms:
        for n, k, warps, stages in ((64, 128, 4, 4), (128, 128, 4, 3), (128, 64, 8, 4), (256, 64, 8, 4), (128, 128, 8, 3)):
            if fmt == "bf16" or k == GROUP:
                yield dict(block_m=m, block_n=n, block_k=k, group_m=16 if m >= 64 else 1, num_warps=warps, num_stages=stages)


FLUSH = None


def median_ms(f, least=7, enough=400):
    """Of replays of a graph of f, with the cache filled with other data before each."""
    global FLUSH
    FLUSH = torch.zeros(256 << 20, dtype=torch.int8, device="cuda") if FLUSH is None else FLUSH
    f()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        f()
    times = []
    while len(times) < 3 + least or (sum(times) < enough and len(times) < 50):
        FLUSH.view(torch.int64).max()
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end))
    return statistics.median(times[3:])


def best(layer, shape, x, ids, weights):
    """(ms, configuration) of the fastest that computes the right numbers."""
    found = []
    per_expert = len(ids) / shape["experts"]
    why = "no configuration ran"
    for config in configs(layer.fmt, per_expert):
        layer.shape(**shape, block_m=config["block_m"])
        try:
            layer.sort(ids)
            out = layer.forward(x, weights, config)
            row = shape["rows"] // 2
            wanted = layer.reference(x, ids, weights, row)
            error = float(((out[row].float() - wanted).norm() / wanted.norm()).cpu())
            if not error < (0.02 if layer.fmt == "bf16" else 0.1):  # rows of e4m3: three roundings by up to 2^-4
                why = f"relative error {error:.3f} with {config}"
                continue
            found.append((median_ms(lambda: layer.forward(x, weights, config)), config))
        except Exception as e:  # what a configuration needs, a device may not have
            why = f"{type(e).__name__}: {e}".splitlines()[0]
    if not found:
        raise RuntimeError(why)
    return min(found, key=lambda pair: pair[0])


def vllm_ms(layer, x, ids, weights, top_k, experts):
    if layer.fmt != "bf16" or importlib.util.find_spec("vllm") is None:
        return None
    try:
        from vllm.model_executor.layers.fused_moe import fused_experts
        topk_ids, topk_weights = ids.view(-1, top_k).to(torch.int32), weights.view(-1, top_k)
        return median_ms(lambda: fused_experts(x, layer.gate_up[:experts], layer.down[:experts], topk_weights, topk_ids))
    except Exception as e:
        print(f"vllm: {e}", file=sys.stderr)
        return None


def torch_ms(layer, x, ids, weights, top_k, experts):
    """The same of PyTorch's grouped products, where it has them; told beside, as it is no fused MoE."""
    if layer.fmt != "bf16" or not hasattr(torch, "_grouped_mm"):
        return None
    order = torch.argsort(ids)
    rows, ends = order // top_k, torch.cumsum(torch.bincount(ids, minlength=experts), 0).to(torch.int32)
    w = weights[order].to(torch.bfloat16)[:, None]
    gate_up, down = layer.gate_up[:experts].transpose(-2, -1), layer.down[:experts].transpose(-2, -1)

    def forward():
        both = torch._grouped_mm(x[rows], gate_up, offs=ends)
        inner = torch.nn.functional.silu(both[:, :INTERMEDIATE]) * both[:, INTERMEDIATE:]
        return torch.zeros_like(x).index_add_(0, rows, torch._grouped_mm(inner, down, offs=ends) * w)

    try:
        return median_ms(forward)
    except Exception as e:
        print(f"torch: {e}", file=sys.stderr)
        return None


def main(words):
    shapes = [shape_of(w) for w in words]
    torch.manual_seed(1)
    for fmt in ("bf16", "e4m3"):
        of_expert = 3 * HIDDEN * INTERMEDIATE * (2 if fmt == "bf16" else 1)
        room = int(torch.cuda.mem_get_info()[0] * 0.8 / of_expert)
        experts = min(room, max(s["experts"] for s in shapes))
        layer = Layer(fmt, experts)
        for shape in shapes:
            line = dict(kind="triton", format=fmt, **shape)
            if shape["experts"] > experts:
                say(**line, reason="the experts do not fit in the device's memory")
                continue
            x = torch.randn(shape["rows"], HIDDEN, device="cuda", dtype=torch.bfloat16)
            ids = torch.stack([torch.randperm(shape["experts"])[: shape["top_k"]] for _ in range(shape["rows"])]).flatten().cuda()
            weights = torch.full((len(ids),), 1 / shape["top_k"], device="cuda")
            try:
                ms, config = best(layer, shape, x, ids, weights)
            except RuntimeError as e:
                say(**line, reason=str(e))
                continue
            own, vllm = ms, vllm_ms(layer, x, ids, weights, shape["top_k"], shape["experts"])
            ms = ms if vllm is None else min(ms, vllm)
            of_torch = torch_ms(layer, x, ids, weights, shape["top_k"], shape["experts"])
            say(**line, ms=ms, own_ms=own, vllm_ms=vllm, torch_ms=of_torch, config=config, torch=torch.__version__, triton=triton.__version__)
        del layer
        torch.cuda.empty_cache()


main(sys.argv[1:])
