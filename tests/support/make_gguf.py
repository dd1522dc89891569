#!/usr/bin/env python3
"""Writes the golden models that GGUF can hold as GGUF files: make_gguf.py OUT_DIRECTORY

NAME.gguf has the weights of tests/golden/models/NAME (or models/tiny-r1) in their own dtype; NAME.whole.gguf has DeepSeek's
kv_b_proj in one piece, as older files have it. Of gpt-oss the limit of the activation is left out, which GGUF has no key for.
"""
import json
import pathlib
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
MODELS = ["deepseek-v2-greedy-tiny", "deepseek-v2-tiny", "deepseek-v3-tiny", "gpt-oss-six-tiny", "gpt-oss-tiny", "mixtral-six-tiny",
          "mixtral-swa-tiny", "mixtral-tiny", "olmoe-tiny", "qwen3-moe-tiny", "tiny-r1"]


def convert(source, out, *options):
    command = [sys.executable, ROOT / "tools/make_tiny_model/to_gguf.py", *options, source, out]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def without_limit(source, directory):
    """The directory as a link to everything but config.json, which lacks swiglu_limit."""
    for path in source.iterdir():
        if path.name != "config.json":
            (directory / path.name).symlink_to(path)
    config = json.loads((source / "config.json").read_text())
    config.pop("swiglu_limit", None)
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def main():
    out = pathlib.Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    for name in MODELS:
        source = ROOT / ("models" if name == "tiny-r1" else "tests/golden/models") / name
        with tempfile.TemporaryDirectory() as directory:
            convert(without_limit(source, pathlib.Path(directory)), out / f"{name}.gguf")
        if name.startswith("deepseek"):
            convert(source, out / f"{name}.whole.gguf", "--whole-kv-b")


if __name__ == "__main__":
    main()
