#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A TCP proxy that does to a link what networks do, told so while it runs.

  fault_proxy.py --to 127.0.0.1:8200 --control /tmp/link.sock [--listen 127.0.0.1:0]

It says "listening on HOST:PORT" and takes lines on the control socket, each answered with "ok", JSON or "error: …":

  up|down|both delay MS [JITTER_MS]   each piece later by so much, in order
  up|down|both rate BYTES_PER_S       no faster than that
  up|down|both stall                  nothing passes and nothing is read: the sender's window fills up
  up|down|both blackhole              what comes is taken and never arrives, as if the other host were gone
  up|down|both halfopen               the end that it leads to (up: the server) is closed, the other is not told; once
  up|down|both reset                  RST to the end that it leads to; once
  up|down|both pass                   no faults; connections that lost bytes are reset
  status                              modes, open connections, bytes

"up" is from the client to the server. New connections meet the same faults; one that is accepted under a black hole
reaches the server only after it.
"""
import argparse
import asyncio
import collections
import json
import os
import random
import signal
import socket
import struct
import sys

PIECE = 64 << 10
HELD_BYTES = 4 << 20  # of a direction of a connection; beyond it the sender waits
DIRECTIONS = ("up", "down")


class Faults:
    """What is done to one direction, of all connections."""

    def __init__(self):
        self.mode, self.delay, self.jitter, self.rate = "pass", 0.0, 0.0, 0.0

    def set(self, **values):
        for name, value in values.items():
            setattr(self, name, value)

    def describe(self):
        return {"mode": self.mode, "delay_ms": self.delay * 1e3, "jitter_ms": self.jitter * 1e3, "rate": self.rate}


def abort(writer):
    """RST instead of FIN."""
    sock = writer.get_extra_info("socket")
    if sock is not None and sock.fileno() >= 0:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


class Pump:
    """One direction of one connection: reads from one end, holds pieces until they are due, writes to the other."""

    def __init__(self, faults, reader, writer, chance):
        self.faults, self.reader, self.writer, self.chance = faults, reader, writer, chance
        self.held, self.held_bytes, self.bytes = collections.deque(), 0, 0
        self.wake = asyncio.Event()   # a piece came or went, or the faults have changed
        self.lost = False             # bytes were swallowed: the stream has a hole
        self.muted = False            # one end is gone and the other must not hear of it
        self.due = self.sent_until = 0.0

    async def read(self):
        loop = asyncio.get_running_loop()
        while True:
            while self.faults.mode == "stall" or self.held_bytes > HELD_BYTES:
                await self._changed()
            try:
                data = await self.reader.read(PIECE)
            except OSError:
                if not self.muted:
                    raise
                data = b""
            if self.muted or self.faults.mode == "blackhole":
                self.lost = True  # its end too
                if not data:
                    return
                continue
            now = loop.time()
            self.due = max(self.due, now + self.faults.delay + self.chance.uniform(-1, 1) * self.faults.jitter)
            self.held.append((self.due, data))
            self.held_bytes += len(data)
            self.wake.set()
            if not data:
                return

    async def write(self):
        loop = asyncio.get_running_loop()
        while True:
            while not self.held or self.muted or self.faults.mode in ("stall", "blackhole"):
                await self._changed()
            due, data = self.held[0]
            wait = max(due, self.sent_until) - loop.time()
            if wait > 0:
                await self._changed(wait)
                continue
            self.held.popleft()
            self.held_bytes -= len(data)
            self.wake.set()
            if not data:
                return self.writer.write_eof()
            if self.faults.rate:
                self.sent_until = max(loop.time(), self.sent_until) + len(data) / self.faults.rate
            self.writer.write(data)
            self.bytes += len(data)
            await self.writer.drain()

    async def _changed(self, timeout=None):
        """Nobody runs between a look at the state and this wait, so no change is missed."""
        self.wake.clear()
        timer = asyncio.get_running_loop().call_later(timeout, self.wake.set) if timeout is not None else None
        await self.wake.wait()
        if timer:
            timer.cancel()


class Connection:
    def __init__(self, up, down):
        self.pumps = {"up": up, "down": down}

    def half_open(self, direction):
        for pump in self.pumps.values():
            pump.muted = True
        self.pumps[direction].writer.close()

    def reset(self):
        for pump in self.pumps.values():
            abort(pump.writer)

    async def run(self):
        """Until both directions have ended or one has failed."""
        halves = [asyncio.gather(p.read(), p.write()) for p in self.pumps.values()]
        try:
            await asyncio.gather(*halves)
        except (OSError, RuntimeError):
            self.reset()
        except asyncio.CancelledError:
            self.reset()
            raise
        finally:
            for half in halves:
                half.cancel()
            await asyncio.gather(*halves, return_exceptions=True)
            for pump in self.pumps.values():
                pump.writer.close()


class Proxy:
    """Owns the listener and its connections; `command` is one line of the control socket."""

    def __init__(self, host, port, seed=1):
        self.target, self.chance = (host, port), random.Random(seed)
        self.faults = {d: Faults() for d in DIRECTIONS}
        self.connections, self.accepted, self.bytes = set(), 0, {d: 0 for d in DIRECTIONS}
        self.tasks, self.changed = set(), asyncio.Event()
        self.server = self.control = None

    async def start(self, listen=("127.0.0.1", 0), control=None):
        self.server = await asyncio.start_server(self._accept, *listen)
        if control:
            self.control = await asyncio.start_unix_server(self._obey, control)
        return self.server.sockets[0].getsockname()[:2]

    async def close(self):
        for server in filter(None, (self.server, self.control)):
            server.close()
        tasks = list(self.tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks)

    async def _accept(self, reader, writer):
        self.accepted += 1
        task = asyncio.current_task()
        self.tasks.add(task)
        try:
            await self._carry(reader, writer)
        except (OSError, asyncio.CancelledError):  # the server refused; close() was called
            abort(writer)
        finally:
            self.tasks.discard(task)

    async def _carry(self, reader, writer):
        while any(f.mode == "blackhole" for f in self.faults.values()):
            await self.changed.wait()
        far_reader, far_writer = await asyncio.open_connection(*self.target)
        for end in (writer, far_writer):
            end.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection = Connection(Pump(self.faults["up"], reader, far_writer, self.chance),
                                Pump(self.faults["down"], far_reader, writer, self.chance))
        self.connections.add(connection)
        try:
            await connection.run()
        finally:
            self.connections.discard(connection)
            for d in DIRECTIONS:
                self.bytes[d] += connection.pumps[d].bytes

    async def _obey(self, reader, writer):
        try:
            while line := await reader.readline():
                try:
                    answer = self.command(line.decode().split()) or "ok"
                except (ValueError, IndexError) as e:
                    answer = f"error: {e}"
                writer.write(answer.encode() + b"\n")
                await writer.drain()
        finally:
            writer.close()

    def command(self, words):
        if words == ["status"]:
            return self._status()
        if len(words) < 2 or words[0] not in (*DIRECTIONS, "both"):
            raise ValueError(f"\"{' '.join(words)}\" is neither status nor up|down|both MODE")
        numbers = [float(w) for w in words[2:]]
        for direction in DIRECTIONS if words[0] == "both" else words[:1]:
            self._set(direction, words[1], numbers)
        for pump in (p for c in self.connections for p in c.pumps.values()):
            pump.wake.set()
        self.changed.set()
        self.changed = asyncio.Event()

    def _set(self, direction, mode, numbers):
        faults, wanted = self.faults[direction], {"delay": (1, 2), "rate": (1, 1)}.get(mode, (0, 0))
        if not wanted[0] <= len(numbers) <= wanted[1] or any(n < 0 for n in numbers):
            raise ValueError(f"{mode} takes {wanted[0]} to {wanted[1]} numbers of at least 0")
        if mode == "delay":
            faults.set(mode="pass", delay=numbers[0] / 1e3, jitter=sum(numbers[1:]) / 1e3)
        elif mode == "rate":
            faults.set(mode="pass", rate=numbers[0])
        elif mode in ("stall", "blackhole"):
            faults.set(mode=mode)
        elif mode == "halfopen":
            for connection in list(self.connections):
                connection.half_open(direction)
        elif mode == "reset":
            for connection in list(self.connections):
                abort(connection.pumps[direction].writer)
        elif mode == "pass":
            faults.set(mode=mode, delay=0.0, jitter=0.0, rate=0.0)
            for connection in list(self.connections):
                if connection.pumps[direction].lost:
                    connection.reset()
        else:
            raise ValueError(f"no mode \"{mode}\"")

    def _status(self):
        moved = {d: self.bytes[d] + sum(c.pumps[d].bytes for c in self.connections) for d in DIRECTIONS}
        return json.dumps({"connections": len(self.connections), "accepted": self.accepted, "bytes": moved,
                           **{d: self.faults[d].describe() for d in DIRECTIONS}})


async def serve(args):
    host, port = args.to.rsplit(":", 1)
    listen_host, listen_port = args.listen.rsplit(":", 1)
    proxy = Proxy(host, int(port), args.seed)
    where = await proxy.start((listen_host, int(listen_port)), args.control)
    print(f"listening on {where[0]}:{where[1]}", flush=True)
    ended = asyncio.Event()
    for sig in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(sig, ended.set)
    await ended.wait()
    await proxy.close()
    if args.control:
        os.unlink(args.control)


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--to", required=True, metavar="HOST:PORT", help="the server")
    ap.add_argument("--listen", default="127.0.0.1:0", metavar="HOST:PORT", help="where clients connect; port 0 chooses one")
    ap.add_argument("--control", metavar="PATH", help="unix socket for commands")
    ap.add_argument("--seed", type=int, default=1, help="of the jitter")
    asyncio.run(serve(ap.parse_args()))


if __name__ == "__main__":
    sys.exit(main())
