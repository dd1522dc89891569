# SPDX-License-Identifier: Apache-2.0
"""The figures, their targets, and the arithmetic that makes them of samples. Pure."""
import dataclasses
import statistics


@dataclasses.dataclass(frozen=True)
class Figure:
    name: str
    what: str
    target: float
    at_most: bool = False

    def reached(self, value):
        if value is None:
            return None
        return value <= self.target if self.at_most else value >= self.target


FIGURES = {f.name: f for f in [
    Figure("decode1_bf16_ratio", "decode, 1 stream, ours / llama.cpp", 1.4),
    Figure("decode1_q8_0_ratio", "decode, 1 stream, ours / llama.cpp", 1.5),
    Figure("decode1_q4_0_ratio", "decode, 1 stream, ours / llama.cpp", 1.6),
    Figure("decode1_bf16_bandwidth_share", "active bytes x tokens/s / read bandwidth", 0.80),
    Figure("decode1_q8_0_bandwidth_share", "active bytes x tokens/s / read bandwidth", 0.75),
    Figure("decode1_q4_0_bandwidth_share", "active bytes x tokens/s / read bandwidth", 0.65),
    Figure("decode16_q8_0_ratio", "decode, 16 streams, ours / llama.cpp", 3),
    Figure("decode32_q8_0_ratio", "decode, 32 streams, ours / llama.cpp", 3),
    Figure("prefill_bf16_ratio", "prefill of 512 tokens, ours / llama.cpp", 2.5),
    Figure("prefill_q8_0_ratio", "prefill of 512 tokens, ours / llama.cpp", 2.5),
    Figure("prefill_q4_0_ratio", "prefill of 512 tokens, ours / llama.cpp", 2.5),
    Figure("prefill_bf16_peak_share", "FLOP/s of prefill / peak of the instruction used", 0.55),
    Figure("clients32_throughput_ratio", "32 clients at once, tokens/s, ours / llama-server", 2),
    Figure("clients32_ttft_ratio", "32 clients at once, TTFT p50, ours / llama-server", 0.5, at_most=True),
    Figure("load_ratio", "start to first token, warm page cache, ours / llama-server", 1, at_most=True),
    Figure("cluster16_share", "decode, 16 streams, router + 2 workers / embedded", 0.95),
    Figure("cluster1_share", "decode, 1 stream, router + 2 workers / embedded", 0.85),
    Figure("wire_us_p50", "extra us of a MoE layer of one row of 2048, TCP", 60, at_most=True),
    Figure("wire_shm_us_p50", "the same over shared memory", 20, at_most=True),
    Figure("step_overhead_share", "engine thread outside kernels / step, 64 streams, tiny-r1", 0.15, at_most=True),
    Figure("rss_over_mb", "resident - (weights as stored + KV), MB", 300, at_most=True),
    Figure("crowded_share", "decode beside a busy process a core / quiet", 0.4),
]}


def paired_median(ours, theirs):
    """Median of the ratios of neighbours in time, so that a machine whose speed drifts hardly matters."""
    return statistics.median(a / b for a, b in zip(ours, theirs))


def result(figure, value, **more):
    """One entry of the JSON; a value of None wants a reason in `more`."""
    return {"value": value, "target": figure.target, "at_most": figure.at_most, "reached": figure.reached(value), **more}


def ratio(figure, ours, theirs, **more):
    best = min if figure.at_most else max
    return result(figure, paired_median(ours, theirs), best_ratio=best(ours) / best(theirs), ours=ours, theirs=theirs, **more)


def bandwidth_share(active_bytes, tokens_per_s, read_gb_s):
    return active_bytes * tokens_per_s / (read_gb_s * 1e9)


def peak_share(flops, seconds, peak_gflop_s):
    return flops / seconds / (peak_gflop_s * 1e9)


def wire_extra_us(percentiles, transport):
    """p50 of one MoE layer over a transport less that of the same layer computed in place."""
    return percentiles[transport] - percentiles["local"]


ENGINE, KERNELS = "switchyard_router_engine_seconds_total", "switchyard_router_kernel_seconds_total"


def overhead_share(before, after):
    """Of two readings of /metrics: the engine's time outside kernels over its time at work."""
    return 1 - (after[KERNELS] - before[KERNELS]) / (after[ENGINE] - before[ENGINE])


def rss_over_mb(rss, weights, kv):
    """`rss` as /proc/PID/status has it in bytes; of the weights only what is resident is taken off."""
    return (rss["VmRSS"] - min(weights, rss["RssFile"]) - kv) / 1e6
