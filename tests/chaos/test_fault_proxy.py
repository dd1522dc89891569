# SPDX-License-Identifier: Apache-2.0
"""The fault proxy against an echo server: what each mode does to the bytes, and that it ends when it is told."""
import asyncio
import json
import time

import pytest

import fault_proxy

SOON = 5      # what comes, comes within
NEVER = 0.25  # what does not come, has not come after


async def echo(reader, writer):
    try:
        while data := await reader.read(4096):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass
    finally:
        writer.close()


class Link:
    """An echo server behind a proxy, a connection through it, and the control socket."""

    def __init__(self, tmp_path):
        self.control = str(tmp_path / "control")

    async def __aenter__(self):
        self.server = await asyncio.start_server(echo, "127.0.0.1", 0)
        self.proxy = fault_proxy.Proxy(*self.server.sockets[0].getsockname()[:2])
        self.address = await self.proxy.start(control=self.control)
        self.reader, self.writer = await asyncio.open_connection(*self.address)
        return self

    async def __aexit__(self, *_):
        self.writer.transport.abort()
        await self.proxy.close()
        self.server.close()

    async def tell(self, line):
        reader, writer = await asyncio.open_unix_connection(self.control)
        writer.write(line.encode() + b"\n")
        answer = (await asyncio.wait_for(reader.readline(), SOON)).decode().strip()
        writer.close()
        return answer

    async def ask(self, data, timeout=SOON):
        self.writer.write(data)
        return await asyncio.wait_for(self.reader.readexactly(len(data)), timeout)

    async def silent(self):
        try:
            await asyncio.wait_for(self.reader.read(1), NEVER)
            return False
        except asyncio.TimeoutError:
            return True


def with_link(test):
    def run(tmp_path):
        async def go():
            async with Link(tmp_path) as link:
                await test(link)

        asyncio.run(asyncio.wait_for(go(), 30))

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


@with_link
async def test_passes_bytes_both_ways_and_ends(link):
    data = bytes(range(256)) * 4096
    assert await link.ask(data) == data
    status = json.loads(await link.tell("status"))
    assert status["connections"] == 1 and status["bytes"] == {"up": len(data), "down": len(data)}
    link.writer.write_eof()
    assert await asyncio.wait_for(link.reader.read(), SOON) == b""


@with_link
async def test_delay_is_added_in_each_direction_and_keeps_the_order(link):
    assert await link.ask(b"warm") == b"warm"
    assert await link.tell("both delay 60 50") == "ok"
    began = time.monotonic()
    for i in range(20):
        link.writer.write(b"%03d" % i)
        await asyncio.sleep(0)
    got = await asyncio.wait_for(link.reader.readexactly(60), SOON)
    assert got == b"".join(b"%03d" % i for i in range(20))
    assert time.monotonic() - began >= 0.02
    assert await link.tell("both delay 100") == "ok"
    began = time.monotonic()
    await link.ask(b"x")
    assert 0.2 <= time.monotonic() - began < SOON
    assert await link.tell("both pass") == "ok"
    assert await link.ask(b"quick", 2) == b"quick"


@with_link
async def test_a_rate_bounds_the_bandwidth(link):
    assert await link.tell("down rate 400000") == "ok"
    began = time.monotonic()
    await link.ask(b"r" * 200_000)
    assert time.monotonic() - began >= 0.3  # the last piece leaves when those before it have had their time


@with_link
async def test_a_stall_holds_everything_and_loses_nothing(link):
    assert await link.tell("down stall") == "ok"
    link.writer.write(b"held")
    assert await link.silent()
    assert await link.tell("down pass") == "ok"
    assert await asyncio.wait_for(link.reader.readexactly(4), SOON) == b"held"


@with_link
async def test_a_stall_pushes_back_and_a_black_hole_swallows(link):
    sock = link.writer.get_extra_info("socket")
    sock.setsockopt(fault_proxy.socket.SOL_SOCKET, fault_proxy.socket.SO_SNDBUF, 64 << 10)
    assert await link.tell("up stall") == "ok"
    link.writer.write(b"s" * (64 << 20))
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(link.writer.drain(), NEVER)
    assert await link.tell("up blackhole") == "ok"
    await asyncio.wait_for(link.writer.drain(), SOON)
    assert await link.silent()


@with_link
async def test_a_black_hole_is_silent_and_what_lost_bytes_is_reset_after_it(link):
    assert await link.ask(b"before") == b"before"
    assert await link.tell("both blackhole") == "ok"
    link.writer.write(b"gone")
    assert await link.silent()
    late_reader, late_writer = await asyncio.open_connection(*link.address)
    late_writer.write(b"late")
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(late_reader.read(1), NEVER)
    assert await link.tell("both pass") == "ok"
    with pytest.raises(ConnectionResetError):
        await asyncio.wait_for(link.reader.readexactly(1), SOON)
    assert await asyncio.wait_for(late_reader.readexactly(4), SOON) == b"late"
    late_writer.transport.abort()


@with_link
async def test_half_open_tells_one_end_only(link):
    assert await link.ask(b"before") == b"before"
    assert await link.tell("up halfopen") == "ok"
    link.writer.write(b"to nobody")
    assert await link.silent()
    reader, writer = await asyncio.open_connection(*link.address)
    writer.write(b"a new one works")
    assert await asyncio.wait_for(reader.readexactly(15), SOON) == b"a new one works"
    writer.close()
    assert await link.tell("up pass") == "ok"
    with pytest.raises(ConnectionResetError):
        await asyncio.wait_for(link.reader.readexactly(1), SOON)


@with_link
async def test_reset_is_a_reset(link):
    assert await link.ask(b"before") == b"before"
    assert await link.tell("down reset") == "ok"
    with pytest.raises(ConnectionResetError):
        await asyncio.wait_for(link.reader.readexactly(1), SOON)


@with_link
async def test_what_it_does_not_know_it_says(link):
    for line in ("up", "sideways stall", "up nonsense", "up delay", "up delay x", "up delay -1", "up stall 3"):
        assert (await link.tell(line)).startswith("error: "), line
    assert await link.ask(b"as before") == b"as before"
