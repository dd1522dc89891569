"""tools/bench/gpu: its arithmetic and JSON, what it says without a GPU, and its checker, held against the emulated plugin and a wrong one."""
import json
import os
import subprocess
import sys

import pytest

import processes
from processes import ROOT

sys.path[:0] = [str(ROOT / "tools/bench")]

from gpu_bench import build, figures, main, programs, report  # noqa: E402

TOOL = ROOT / "tools/bench/gpu"
PLUGIN = processes.BIN.parent / "lib/libswitchyard_cuda_emulated.so"
LIMITS = [{"kind": "memory", "read_gb_s": 2000, "copy_gb_s": 1800}, {"kind": "cublaslt", "bf16_tflop_s": 500},
          {"kind": "cublaslt", "bf16_tflop_s": 700}]


def run(*args, **env):
    return subprocess.run([sys.executable, TOOL, *map(str, args)], capture_output=True, text=True, timeout=600, env={**os.environ, **env})


def ffn(fmt, shape, ms, kind="ffn", **more):
    rows, experts, top_k = map(int, shape.split(":"))
    return {"kind": kind, "format": fmt, "rows": rows, "experts": experts, "top_k": top_k, "ms": ms, **more}


def value(name, lines, reasons=None):
    return figures.result(figures.FIGURES[name], lines, reasons or {})


def test_shares_are_of_the_better_limit_and_the_worst_shape():
    lines = LIMITS + [ffn("bf16", "8:32:8", 1.0, bytes=1.8e9), ffn("bf16", "32:32:8", 1.0, bytes=1.9e9), ffn("e4m3", "8:32:8", 1.0, bytes=1e9),
                      ffn("bf16", "4096:8:1", 2.0, flop=1.26e12, bytes=1), ffn("bf16", "8192:8:1", 2.0, flop=1.12e12, bytes=1)]
    assert value("decode_bf16_bandwidth_share", lines)["value"] == pytest.approx(0.9)
    assert value("decode_fp8_bandwidth_share", lines)["value"] == pytest.approx(0.5)
    prefill = value("prefill_bf16_cublas_share", lines)
    assert prefill["value"] == pytest.approx(0.8) and prefill["reached"]
    assert prefill["shapes"] == pytest.approx({"4096:8:1": 0.9, "8192:8:1": 0.8})


def test_ratios_are_of_shapes_that_both_sides_have():
    lines = [ffn("bf16", "4096:8:1", 3.2), ffn("e4m3", "4096:8:1", 2.0), ffn("bf16", "8:32:8", 1.0), ffn("e4m3", "8192:8:1", 9.0),
             ffn("bf16", "4096:8:1", 6.4, kind="triton"), ffn("bf16", "8:32:8", 0.5, kind="triton"), ffn("bf16", "16384:8:1", 7, kind="triton"),
             {"kind": "triton", "format": "e4m3", "reason": "no"}]
    assert value("prefill_fp8_over_bf16", lines)["value"] == pytest.approx(1.6)
    moe = value("fused_moe_geomean_ratio", lines)
    assert moe["shapes"] == {"bf16 8:32:8": 0.5, "bf16 4096:8:1": 2.0} and moe["value"] == pytest.approx(1) and moe["reached"] is False


def test_rooflines_and_frames():
    # 128 heads: by FLOP 0.2 ms and by bytes 0.1; 16 heads: by bytes alone.
    lines = LIMITS + [{"kind": "mla", "heads": h, "ms": 0.25, "bytes": 2e8, "flop": 1.4e11} for h in (128, 16)]
    assert value("mla_decode_roofline_share", lines)["value"] == pytest.approx(0.8)
    assert value("mla_decode16_bandwidth_share", lines)["value"] == pytest.approx(0.4)
    frames = [{"kind": "frame", "format": f, "ms": ms, "copy_in_ms": 0.1, "compute_ms": 0.8, "copy_out_ms": 0.1} for f, ms in (("bf16", 1.2), ("e4m3", 1.6))]
    assert value("frame_ratio", frames)["value"] == pytest.approx(1.6) and value("frame_ratio", frames)["reached"] is False
    streams = [{"kind": "decode", "streams": n, "ms": ms, "bytes": 2e9} for n, ms in ((1, 1.25), (64, 2.0))]
    assert value("embedded_decode_bandwidth_share", LIMITS + streams)["value"] == pytest.approx(0.5)
    assert value("embedded_decode_bandwidth_share", LIMITS + streams[:1])["value"] is None


def test_what_was_not_measured_says_why():
    assert value("mla_decode_roofline_share", LIMITS)["reason"] == "nothing was measured of mla"
    assert value("mla_decode_roofline_share", LIMITS, {"mla": "mla: it broke"})["reason"] == "mla: it broke"
    no_peak = LIMITS[:1] + [{"kind": "cublaslt", "reason": "no library"}, ffn("bf16", "4096:8:1", 1, flop=1)]
    assert value("prefill_bf16_cublas_share", no_peak)["reason"] == "no library"
    figure = value("fused_moe_geomean_ratio", [{"kind": "triton", "format": f, "reason": "no torch"} for f in ("bf16", "e4m3")] + [ffn("bf16", "8:32:8", 1)])
    assert figure["value"] is None and figure["reached"] is None and figure["reason"] == "no torch"


def test_every_figure_has_its_programs():
    known = set(programs.commands("binary", False))
    assert set(figures.HOW) == set(figures.FIGURES) and all(set(f.needs) <= known for f in figures.FIGURES.values())
    assert figures.QUICK <= set(figures.shapes(False)) and set(figures.shapes(True)) == figures.QUICK
    assert report.missed({"a": {"reached": True}, "b": {"reached": False}, "c": {"reached": None}}) == ["b", "c"]


def test_output_of_others_is_read():
    assert programs.parse_smi("NVIDIA H100 80GB HBM3, 580.1, 9.0\n", programs.SMI)["name"] == "NVIDIA H100 80GB HBM3"
    with pytest.raises(programs.NoGpu, match="not understood"):
        programs.parse_smi("No devices were found", programs.SMI)
    assert programs.spread("345, 2619, 70.5, 30\n1980, 2619, 690.1, 61\n1755, 2619, [N/A], 55\n") == {
        "clocks.sm": [345, 1755, 1980], "clocks.mem": [2619] * 3, "power.draw": [70.5, 380.3, 690.1], "temperature.gpu": [30, 55, 61]}
    assert programs.parse('noise\n{"kind": "a"}\n{"b": 1}\n{broken\n') == [{"kind": "a"}]
    lines, why = programs.run([sys.executable, "-c", "import sys; print('{\"kind\": \"a\"}'); sys.exit('no memory')"])
    assert lines == [{"kind": "a"}] and why == "-c: no memory"
    assert [build.arch_of(c) for c in ("8.0", "8.9", "9.0", "10.0", "12.0")] == ["sm_80", "sm_80", "sm_90a", "sm_100", "sm_100"]
    with pytest.raises(build.BuildError, match="7.5"):
        build.arch_of("7.5")


def test_without_a_gpu_all_figures_are_null(tmp_path):
    out = tmp_path / "out.json"
    done = run("--json", out, PATH="/nonexistent")
    assert done.returncode == 0, done.stderr
    document = json.loads(out.read_text())
    assert list(document["figures"]) == list(figures.FIGURES) and document["device"] is None
    for figure in document["figures"].values():
        assert figure["value"] is None and figure["reason"] == "no GPU: nvidia-smi was not found"
        assert figure["unit"] == "ratio" and figure["numerator"] and figure["denominator"]
    only = run("--json", "-", "--only", "mla,frame", "--check", PATH="/nonexistent")
    assert only.returncode == 1 and "missed or not measured: mla_decode_roofline_share" in only.stderr
    assert list(json.loads(only.stdout)["figures"]) == ["mla_decode_roofline_share", "mla_decode16_bandwidth_share", "frame_ratio"]


def test_programs_that_fail_cost_their_figures_only(tmp_path, monkeypatch):
    """All of main, with an nvidia-smi and programs that are scripts."""
    smi = tmp_path / "nvidia-smi"
    smi.write_text('#!/bin/sh\ncase "$*" in\n*name*) echo "A GPU, 1.0, 9.0" ;;\n*lms*) echo "1000, 2000, 300, 50"; exec sleep 60 ;;\n'
                   "*) echo 'Field is not valid'; exit 2 ;;\nesac\n")
    binary = tmp_path / "gpu_bench"
    binary.write_text("#!/bin/sh\ncase $1 in\nlimits) echo '" + json.dumps(LIMITS[0]) + "'; echo '" + json.dumps(LIMITS[2]) + "' ;;\n"
                      "mla) echo '" + json.dumps({"kind": "mla", "heads": 16, "ms": 0.25, "bytes": 4e8, "flop": 1}) + "'; echo broken >&2; exit 1 ;;\nesac\n")
    for script in (smi, binary):
        script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(build.Builder, "programs", lambda self: binary)
    monkeypatch.setattr(build, "cublas", lambda: None)
    monkeypatch.setattr(main, "toolkit", lambda: "none")
    out = tmp_path / "out.json"
    assert main.main(["--only", "mla", "--check", "--json", str(out)]) == 1
    document = json.loads(out.read_text())
    assert document["device"] == "A GPU" and document["arch"] == "sm_90a"
    assert "Field is not valid" in document["clocks"]["before"]["more"]
    assert document["figures"]["mla_decode16_bandwidth_share"]["value"] == pytest.approx(0.8)
    assert document["figures"]["mla_decode_roofline_share"]["reason"] == "mla: broken"
    meanwhile = [x for x in document["samples"] if x["kind"] == "clocks"]
    assert [x["program"] for x in meanwhile] == ["limits", "mla"]


def test_words_that_mean_nothing_are_refused():
    assert "no figure is named like speed" in run("--only", "speed").stderr
    assert "go with --test" in run("--sanitize").stderr
    assert run("--test", PATH="/nonexistent").stderr == "gpu: no GPU: nvidia-smi was not found\n"


# A plugin that changes a bit of each frame's first number, and of each step's.
WRONG = r"""
#include <dlfcn.h>
#include "services/kernels/cuda/backbone_abi.h"
static void* real = dlopen(PLUGIN, RTLD_NOW);
static const SyCudaApi* api = ((SyCudaPluginFunction)dlsym(real, "SyCudaPlugin"))(SY_CUDA_ABI_VERSION);
static const SyCudaBackboneApi* backbone = ((SyCudaBackbonePluginFunction)dlsym(real, "SyCudaBackbonePlugin"))(SY_CUDA_BACKBONE_ABI_VERSION);
static unsigned char* last;
static int Change(int status) { if (last) last[0] ^= 1, last = 0; return status; }
static int Finish(SyCudaFfn* ffn, const SyCudaOut* outs, int32_t count, SyCudaError* error) {
  last = (unsigned char*)outs[0].to; return api->ffn_finish(ffn, outs, count, error);
}
static int Wait(SyCudaFfn* ffn, SyCudaError* error) { return Change(api->ffn_wait(ffn, error)); }
static int Head(SyCudaBackbone* b, const float** logits, SyCudaError* error) {
  int status = backbone->head(b, logits, error); last = (unsigned char*)*logits; return status;
}
static int WaitStep(SyCudaBackbone* b, SyCudaError* error) { return Change(backbone->wait(b, error)); }
extern "C" const SyCudaApi* SyCudaPlugin(int32_t) { static SyCudaApi wrong = *api; wrong.ffn_finish = Finish, wrong.ffn_wait = Wait; return &wrong; }
extern "C" const SyCudaBackboneApi* SyCudaBackbonePlugin(int32_t) {
  static SyCudaBackboneApi wrong = *backbone; wrong.head = Head, wrong.wait = WaitStep; return &wrong;
}
"""


@pytest.mark.skipif(not PLUGIN.exists(), reason="the emulated plugin is not built")
def test_the_checker_passes_what_is_right_and_finds_a_wrong_bit(tmp_path):
    words = ("--test", "--quick", "--build-dir", tmp_path, "--only", "ffn bf16, 192", "--plugin")
    right = run(*words, PLUGIN)
    assert right.returncode == 0 and "\n2 cases, 0 findings" in right.stdout, right.stdout + right.stderr
    source, wrong = tmp_path / "wrong.cc", tmp_path / "wrong.so"
    source.write_text(WRONG)
    subprocess.run([build.find_cxx(), "-std=c++20", "-shared", "-fPIC", f"-I{ROOT}", f'-DPLUGIN="{PLUGIN}"', source, "-ldl", "-o", wrong], check=True)
    found = run(*words, wrong)
    assert found.returncode == 1 and "FAILED" in found.stdout and "have other bits alone" in found.stdout, found.stdout + found.stderr
    found = run("--test", "--quick", "--build-dir", tmp_path, "--only", "latents", "--plugin", wrong)
    assert found.returncode == 1 and "logits have other bits" in found.stdout, found.stdout + found.stderr
    assert "no case is named like" in run("--test", "--build-dir", tmp_path, "--only", "nonsense", "--plugin", PLUGIN).stderr


def test_all_of_it_compiles():
    try:
        build.find_nvcc()
    except build.BuildError as e:
        print(f"not compiled: {e}")
        pytest.skip(str(e))
    done = run("--build-only", "--arch", "sm_90a")
    assert done.returncode == 0, done.stderr
