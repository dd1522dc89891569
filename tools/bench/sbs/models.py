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
