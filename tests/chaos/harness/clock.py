# SPDX-License-Identifier: Apache-2.0
"""A wall clock of its own for a process, which may be set while it runs (tests/chaos/clock_shim.cc)."""
import struct

from .processes import BIN, Failure

SHIM = BIN / "libchaos_clock.so"


class Clock:
    def __init__(self, path):
        self.path = path
        if not SHIM.exists():
            raise Failure(f"{SHIM} is not there: build it, its target is chaos_clock")
        path.write_bytes(bytes(8))

    def environment(self):
        return {"LD_PRELOAD": str(SHIM), "CHAOS_CLOCK": str(self.path)}

    def set(self, seconds):
        """So far from the machine's clock; what waits by it feels the jump."""
        with open(self.path, "r+b") as file:
            file.write(struct.pack("=q", int(seconds * 1e9)))
