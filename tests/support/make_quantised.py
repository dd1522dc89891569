#!/usr/bin/env python3
"""Writes golden models with quantised weights: make_quantised.py OUT_DIRECTORY

MODEL.SCHEME has the weights of tests/golden/models/MODEL, quantised; MODEL.SCHEME.float what they stand for in float32.
"""
import pathlib
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
MODELS = {
    "deepseek-v3-tiny.int8": ["int8"],
    "olmoe-tiny.int8-32": ["int8", "--group", "32", "--scales", "F16"],
    "mixtral-tiny.int8-f32": ["int8", "--scales", "F32"],
    "deepseek-v2-tiny.int4": ["int4", "--group", "32"],
    "qwen3-moe-tiny.int4-row": ["int4", "--scales", "F16"],
    "deepseek-v3-tiny.int4-zeros": ["int4-zeros", "--group", "32"],
    "mixtral-swa-tiny.int4-zeros": ["int4-zeros", "--group", "64", "--scales", "F16"],
    "deepseek-v3-tiny.fp8": ["fp8"],
    "deepseek-v2-tiny.fp8-48": ["fp8", "--block-rows", "48"],  # blocks end inside of heads
    "gpt-oss-tiny.mxfp4": ["mxfp4"],
    "deepseek-v3-tiny.gptq": ["gptq", "--group", "32", "--scales", "F16"],
    "qwen3-moe-tiny.gptq-sym": ["gptq-sym", "--scales", "F16"],
    "olmoe-tiny.gptq_v2": ["gptq_v2", "--group", "32", "--scales", "F16"],
    "deepseek-v2-tiny.awq": ["awq", "--group", "32", "--scales", "F16"],
    "mixtral-tiny.awq": ["awq", "--group", "64", "--scales", "F16"],
}


def main():
    out = pathlib.Path(sys.argv[1])
    shutil.rmtree(out, ignore_errors=True)  # tests take all that lies there
    for name, (scheme, *options) in MODELS.items():
        model = ROOT / "tests/golden/models" / name.split(".")[0]
        command = [sys.executable, ROOT / "tools/make_tiny_model/to_quantised.py", "--scheme", scheme, *options,
                   "--float", out / f"{name}.float", model, out / name]
        subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
