# SPDX-License-Identifier: Apache-2.0
"""The measurements. Both sides are run in turn, A B A B, as a shared machine's speed drifts by the minute; samples that stand at
the same place of two lists were taken one after the other.
"""
import dataclasses
import json
import statistics
import time

from . import figures, machine, models
from .processes import MeasureError
from .servers import seconds_to_first_token

PREFILL, CLIENTS_PROMPT, CLIENTS_OUT, CLIENTS = 512, 60, 32, 32
DECODE_PROMPT = 16
KV = 64 << 20  # configured KV cache of the server whose memory is measured


@dataclasses.dataclass(frozen=True)
class Effort:
    pairs: int  # of one stream and prefill, a type
    tokens: int  # of one stream
    many_pairs: int  # of everything else
    many_tokens: int


QUICK = Effort(pairs=3, tokens=24, many_pairs=2, many_tokens=16)
FULL = Effort(pairs=9, tokens=96, many_pairs=5, many_tokens=64)


class Bench:
    """What all parts share, and the results by figure."""

    def __init__(self, processes, ours, theirs, store, bin_dir, effort, tiny):
        self.processes, self.ours, self.theirs, self.store, self.bin_dir, self.effort = processes, ours, theirs, store, bin_dir, effort
        self.tiny = tiny  # models/tiny-r1
        self.until = float("inf")  # time.monotonic() at which the part that runs is to end
        self.config = json.loads((store.checkpoint / "config.json").read_text())
        self.results, self.caps, self.apart = {}, None, {}
        self.refusals = {}  # by type: why our server does not take it
        self.seed = 0

    def repeats(self, wanted, least=1):
        """0, 1, …: as many samples as are wanted, or as there is time for."""
        for i in range(wanted):
            if i >= least and time.monotonic() >= self.until:
                return
            yield i

    def figure(self, name, value, **more):
        self.results[name] = figures.result(figures.FIGURES[name], value, **more)

    def ratio(self, name, ours, theirs, **more):
        self.results[name] = figures.ratio(figures.FIGURES[name], ours, theirs, **more)

    def missing(self, names, reason, **more):
        for name in names:
            self.figure(name, None, reason=reason, **more)

    def measure_machine(self, weights=None):
        """Bandwidth and peaks of this moment, of a file of weights too; the best seen so far stay in `caps`."""
        now = machine.capabilities(self.processes, self.bin_dir, self.ours.threads, weights)
        self.caps = machine.better(self.caps or now, now)
        return now

    def serve(self, kind, *args):
        """Our server on the model in this type, warm; raises why it is refused."""
        if kind in self.refusals:
            raise MeasureError(self.refusals[kind])
        try:
            server = self.ours.serve(self.store.ours(kind), "--kv-memory", "256MiB", *args)
        except MeasureError as e:
            self.refusals[kind] = str(e)
            raise
        self.ask(server, 1, DECODE_PROMPT, 4)
        return server

    def kind(self):
        """The type of the figures that name none: q8_0, or bf16 while our server refuses that."""
        try:
            self.ours.stop(self.serve("q8_0"))
            return "q8_0"
        except MeasureError:
            return "bf16"

    def ask(self, server, streams, prompt, tokens):
        self.seed += 1  # no prompt twice: nothing is remembered of it
        return self.ours.bench(server, streams, prompt, tokens, seed=self.seed)

    def decode_rate(self, server, streams, tokens):
        return streams * 1e3 / self.ask(server, streams, DECODE_PROMPT, tokens)["itl_ms"]["mean"]

    def prefill_rate(self, server):
        return PREFILL * 1e3 / self.ask(server, 1, PREFILL, 1)["ttft_ms"]["p50"]


def one_stream(b, kind, wanted):
    """decode1 and prefill of one type."""
    names = [n for n in (f"decode1_{kind}_ratio", f"decode1_{kind}_bandwidth_share", f"prefill_{kind}_ratio", f"prefill_{kind}_peak_share")
             if n in figures.FIGURES and n.split("_")[0] in wanted]
    decode, prefill = "decode1" in wanted, "prefill" in wanted
    arguments = ["-n", b.effort.tokens if decode else 0, "-p", PREFILL if prefill else 0]
    try:
        server = b.serve(kind)
    except MeasureError as e:
        theirs = b.theirs.bench(b.store.gguf(kind), *arguments)
        return b.missing(names, str(e), theirs_alone=theirs)
    ours, theirs, caps = {"decode1": [], "prefill": []}, {"decode1": [], "prefill": []}, []
    for _ in b.repeats(b.effort.pairs):
        caps.append(b.measure_machine(models.largest_file(b.store.ours(kind))))
        if decode:
            ours["decode1"].append(b.decode_rate(server, 1, b.effort.tokens))
        if prefill:
            ours["prefill"].append(b.prefill_rate(server))
        rates = b.theirs.bench(b.store.gguf(kind), *arguments)
        theirs["decode1"] += rates.get(f"tg{b.effort.tokens}", [])
        theirs["prefill"] += rates.get(f"pp{PREFILL}", [])
    isa = server.isa()
    b.ours.stop(server)
    for part in ("decode1", "prefill"):
        if part in wanted:
            b.ratio(f"{part}_{kind}_ratio", ours[part], theirs[part], unit="tokens/s")
    if decode:
        _bandwidth_share(b, kind, ours["decode1"], theirs["decode1"], caps)
    if prefill and kind == "bf16":
        _peak_share(b, ours["prefill"], theirs["prefill"], caps, isa)


def _bandwidth_share(b, kind, ours, theirs, caps):
    path = b.store.ours(kind)
    active = models.active_bytes(models.tensor_sizes(path), b.config)
    peer_active = models.active_bytes(models.tensor_sizes(b.store.gguf(kind)), b.config)
    best_read = max(c["read_gb_s"] for c in caps)
    b.figure(f"decode1_{kind}_bandwidth_share",
             statistics.median(figures.bandwidth_share(active, r, c["read_gb_s"]) for r, c in zip(ours, caps)),
             best=figures.bandwidth_share(active, max(ours), best_read),
             theirs_best=figures.bandwidth_share(peer_active, max(theirs), best_read),
             active_bytes=active, read_gb_s=[c["read_gb_s"] for c in caps], file_read_gb_s=[c["file_read_gb_s"] for c in caps],
             share_of_file_read=statistics.median(figures.bandwidth_share(active, r, c["file_read_gb_s"]) for r, c in zip(ours, caps)))


PEAKS = {"amx": "amx_bf16_gflop_s", "avx512bf16": "dpbf16_gflop_s", "avx512": "avx512_fma_gflop_s", "avx2": "avx2_fma_gflop_s"}


def _peak_share(b, ours, theirs, caps, isa):
    name = "prefill_bf16_peak_share"
    if isa not in PEAKS:
        return b.missing([name], f"no peak is measured for --isa {isa}")
    flops, peak = models.prefill_flops(b.config, PREFILL), PEAKS[isa]
    best_peak = max(c[peak] for c in caps)
    b.figure(name, statistics.median(figures.peak_share(flops, PREFILL / r, c[peak]) for r, c in zip(ours, caps)),
             best=figures.peak_share(flops, PREFILL / max(ours), best_peak),
             theirs_best=figures.peak_share(flops, PREFILL / max(theirs), best_peak),
             flops=flops, peak=peak, peak_gflop_s=[c[peak] for c in caps])


def many_streams(b):
    """decode16 and decode32, q8_0."""
    streams, tokens, kind = (16, 32), b.effort.many_tokens, "q8_0"
    names = {n: f"decode{n}_{kind}_ratio" for n in streams}
    try:
        server = b.serve(kind)
    except MeasureError as e:
        return b.missing(names.values(), str(e), theirs_alone=b.theirs.batched(b.store.gguf(kind), streams, DECODE_PROMPT, tokens))
    ours, theirs = {n: [] for n in streams}, {n: [] for n in streams}
    for _ in b.repeats(b.effort.many_pairs):
        for n in streams:
            ours[n].append(b.decode_rate(server, n, tokens))
        rates = b.theirs.batched(b.store.gguf(kind), streams, DECODE_PROMPT, tokens)
        for n in streams:
            theirs[n].append(rates[n])
    b.ours.stop(server)
    for n, name in names.items():
        b.ratio(name, ours[n], theirs[n], unit="tokens/s")


def clients(b):
    """32 clients at once over HTTP, the same client for both; and the memory of our server while it serves them."""
    kind = b.kind()
    server = b.ours.serve(b.store.ours(kind), "--kv-memory", f"{KV}B")  # all weights are looked at: all of them are resident
    peer = b.theirs.serve(b.store.gguf(kind), "-np", CLIENTS, "-c", CLIENTS * 128)
    ours, theirs = [], []
    for s in (server, peer):
        b.ask(s, 1, CLIENTS_PROMPT, 2)
    for _ in b.repeats(b.effort.many_pairs):
        ours.append(b.ask(server, CLIENTS, CLIENTS_PROMPT, CLIENTS_OUT))
        theirs.append(b.ask(peer, CLIENTS, CLIENTS_PROMPT, CLIENTS_OUT))
    rss, peer_rss = server.resident(), peer.resident()
    b.ours.stop(server)
    b.theirs.stop(peer)
    for name, value, unit in (("clients32_throughput_ratio", lambda r: r["output_tokens_per_s"], "tokens/s"),
                              ("clients32_ttft_ratio", lambda r: r["ttft_ms"]["p50"], "ms")):
        b.ratio(name, [value(r) for r in ours], [value(r) for r in theirs], unit=unit, type=kind)
    weights = models.stored_bytes(b.store.ours(kind))
    b.figure("rss_over_mb", figures.rss_over_mb(rss, weights, KV), type=kind, weights=weights, kv=KV, resident=rss, theirs_resident=peer_rss)


def load(b):
    """Start to first token, of each side as it comes."""
    kind = b.kind()
    ours, theirs = [], []
    for _ in b.repeats(b.effort.many_pairs + 1, least=2):  # the first warms the page cache
        seconds, server = seconds_to_first_token(lambda: b.ours.serve(b.store.ours(kind)))
        b.ours.stop(server)
        ours.append(seconds)
        seconds, server = seconds_to_first_token(lambda: b.theirs.serve(b.store.gguf(kind)))
        b.theirs.stop(server)
        theirs.append(seconds)
    b.ratio("load_ratio", ours[1:], theirs[1:], unit="s", type=kind)


def cluster(b):
    """A router and two workers on loopback, which meet through shared memory, against the embedded server."""
    kind = b.kind()
    tokens = {1: b.effort.tokens, 16: b.effort.many_tokens}
    embedded, apart = {1: [], 16: []}, {1: [], 16: []}
    server = b.serve(kind)
    parts = b.ours.cluster(b.store.ours(kind), 2, "--kv-memory", "256MiB")
    b.ask(parts, 1, DECODE_PROMPT, 4)
    for _ in b.repeats(b.effort.many_pairs):
        for n in tokens:
            embedded[n].append(b.decode_rate(server, n, tokens[n]))
            apart[n].append(b.decode_rate(parts, n, tokens[n]))
    b.ours.stop(parts)
    b.ours.stop(server)
    theirs = {1: _rpc_share(b, kind, tokens[1]), 16: {}}  # llama-batched-bench knows nothing of workers
    for n in tokens:
        b.figure(f"cluster{n}_share", figures.paired_median(apart[n], embedded[n]), best=max(apart[n]) / max(embedded[n]),
                 cluster=apart[n], embedded=embedded[n], unit="tokens/s", type=kind, **theirs[n])


def _rpc_share(b, kind, tokens):
    """The same of llama.cpp: its model on two rpc-servers of this host, against one process."""
    arguments = (b.store.gguf(kind), "-n", tokens, "-p", 0)
    alone, apart = [], []
    try:
        addresses = b.theirs.workers(2)
        for _ in b.repeats(b.effort.many_pairs):
            alone += b.theirs.bench(*arguments)[f"tg{tokens}"]
            apart += b.theirs.bench(*arguments, "-ngl", 99, "--rpc", addresses)[f"tg{tokens}"]
    except MeasureError as e:
        return {"theirs_reason": str(e)}
    finally:
        b.processes.stop_all()  # ours have ended already
    return {"theirs_share": figures.paired_median(apart, alone), "theirs_rpc": apart, "theirs_alone": alone}


def wire(b):
    """One MoE layer of one row over the wire, less the same in place."""
    runs = [parse_dispatch(b.processes.run(b.bin_dir / "dispatch_bench", 1, 2048, 2000)) for _ in b.repeats(b.effort.many_pairs)]
    for name, transport in (("wire_us_p50", "tcp"), ("wire_shm_us_p50", "shm")):
        extra = [figures.wire_extra_us(r, transport) for r in runs]
        b.figure(name, statistics.median(extra), best=min(extra), samples=extra, us_p50=runs,
                 wire_us_mean=statistics.median(r[transport + "_wire"] for r in runs))


def parse_dispatch(text):
    """Of dispatch_bench's lines: p50 in us by transport, and the mean of the wire itself as TRANSPORT_wire."""
    out = {}
    for line in text.splitlines():
        words = line.split()
        if "p50" in words:
            out[words[0]] = float(words[words.index("p50") + 1])
        if "wire" in words:
            out[words[0] + "_wire"] = float(words[words.index("wire") + 1])
    return out


def step_overhead(b):
    """The engine thread outside kernels on a model so small that it shows."""
    streams = 64
    server = b.ours.serve(b.tiny, "--kv-memory", "256MiB")
    b.ask(server, streams, 8, 16)
    if absent := {figures.ENGINE, figures.KERNELS} - set(server.metrics()):
        raise MeasureError(f"the server has no metric {', '.join(absent)}")
    shares, gateway = [], []
    for _ in b.repeats(b.effort.many_pairs + 1):
        before, cpu_before = server.metrics(), server.cpu_seconds()
        b.ask(server, streams, 8, 128)
        after, cpu_after = server.metrics(), server.cpu_seconds()
        shares.append(figures.overhead_share(before, after))
        used = {name: seconds - cpu_before.get(name, 0) for name, seconds in cpu_after.items()}
        gateway.append(sum(s for name, s in used.items() if name not in ("engine", "compute")) / sum(used.values()))
    b.ours.stop(server)
    b.figure("step_overhead_share", statistics.median(shares), best=min(shares), samples=shares, gateway_cpu_share=gateway)


def crowded(b):
    """One stream beside a busy process a core."""
    kind, quiet, beside = b.kind(), [], []
    server = b.serve(kind)
    for _ in b.repeats(b.effort.many_pairs):
        quiet.append(b.decode_rate(server, 1, b.effort.tokens))
        busy = [b.processes.start("python3", "-c", "while True: pass") for _ in range(max(2, b.ours.threads))]
        beside.append(b.decode_rate(server, 1, b.effort.tokens))
        b.processes.stop(*busy)
    b.ours.stop(server)
    b.figure("crowded_share", figures.paired_median(beside, quiet), best=max(beside) / max(quiet), crowded=beside, quiet=quiet,
             unit="tokens/s", type=kind)
