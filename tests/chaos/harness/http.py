# SPDX-License-Identifier: Apache-2.0
"""The little HTTP that the script needs, as HTTP/1.0: an answer ends with its connection."""
import asyncio
import json
import re


def request(method, path, body=None):
    data = b"" if body is None else json.dumps(body).encode()
    return f"{method} {path} HTTP/1.0\r\nhost: localhost\r\ncontent-length: {len(data)}\r\n\r\n".encode() + data


async def get(port, path, seconds=5):
    """(status, text); status 0 where nobody answers in time."""
    try:
        return await asyncio.wait_for(_get(port, path), seconds)
    except (OSError, asyncio.TimeoutError, ValueError, IndexError):
        return 0, ""


async def _get(port, path):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(request("GET", path))
        head, _, body = (await reader.read(-1)).partition(b"\r\n\r\n")
        return int(head.split(None, 2)[1]), body.decode()
    finally:
        writer.transport.abort()


class Metrics:
    """One reading of a /metrics page; looks at a line only when it is asked for."""

    def __init__(self, text):
        self.lines = text.splitlines()

    def series(self, name):
        """(labels, value) of each series of the name."""
        for line in self.lines:
            if line.startswith(name) and (m := re.match(r"(\w+)(?:\{(.*)\})? (\S+)$", line)) and m[1] == name:
                yield dict(re.findall(r'(\w+)="([^"]*)"', m[2] or "")), float(m[3])

    def sum(self, name, **labels):
        """Of all series of the name that bear these labels; 0 where there is none."""
        return sum(value for has, value in self.series(name) if all(has.get(k) == v for k, v in labels.items()))


async def metrics(port, seconds=5):
    status, text = await get(port, "/metrics", seconds)
    return Metrics(text) if status == 200 else None
