# SPDX-License-Identifier: Apache-2.0
"""A worker that nobody hears any more and nobody is told of: its packets are dropped by the firewall, or swallowed by the fault proxy."""
import os
import shutil
import subprocess


def _iptables(action, port, which):
    return subprocess.run(["iptables", "-w", "2", action, "INPUT", "-i", "lo", "-p", "tcp", which, str(port), "-j", "DROP"],
                          capture_output=True, text=True, timeout=10)


def available():
    """Whether this process may use the firewall."""
    if os.geteuid() != 0 or shutil.which("iptables") is None:
        return False
    return subprocess.run(["iptables", "-w", "2", "-L", "INPUT", "-n"], capture_output=True, timeout=10).returncode == 0


class Cut:
    """While it lasts nothing reaches the port and nothing comes from it."""

    def __init__(self, port):
        self.port = port

    async def __aenter__(self):
        try:
            for which in ("--dport", "--sport"):
                done = _iptables("-I", self.port, which)
                if done.returncode:
                    raise RuntimeError(f"iptables: {done.stderr.strip()}")
        except BaseException:
            self._heal()
            raise

    async def __aexit__(self, *_):
        self._heal()

    def _heal(self):
        for which in ("--dport", "--sport"):
            while _iptables("-D", self.port, which).returncode == 0:
                pass


class Hole:
    """The same by a fault proxy before the worker: what is sent is taken and never arrives."""

    def __init__(self, link):
        self.link = link

    async def __aenter__(self):
        await self.link.tell("both blackhole")

    async def __aexit__(self, *_):
        await self.link.tell("both pass")
