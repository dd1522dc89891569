# SPDX-License-Identifier: Apache-2.0
"""The tensors of a directory of safetensors, with nothing but Python."""
import json
import mmap
import struct


def read(directory):
    """Name → (shape, dtype as in the header, mapped bytes)."""
    tensors = {}
    for path in sorted(directory.glob("*.safetensors")):
        with open(path, "rb") as f:
            data = memoryview(mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ))
        size = struct.unpack("<Q", data[:8])[0]
        for name, t in json.loads(bytes(data[8:8 + size])).items():
            if name != "__metadata__":
                begin, end = t["data_offsets"]
                tensors[name] = t["shape"], t["dtype"], data[8 + size + begin:8 + size + end]
    return tensors
