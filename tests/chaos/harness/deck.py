# SPDX-License-Identifier: Apache-2.0
"""The requests that scenarios ask, and what an undisturbed embedded server says to them."""
import asyncio
import random

from . import http, load
from .cluster import MODEL
from .processes import BIN, START_SECONDS, Process, free_port, until


def deck(size, tokens=(200, 800), seed=7, choices=1, stops=False):
    """Prompts of all kinds: greedy and sampled; every third with several choices, every fourth with a stop string if asked for."""
    chance = random.Random(seed)
    requests = []
    for i in range(size):
        body = {"prompt": [0] + [chance.randrange(3, 2500) for _ in range(chance.randrange(3, 48))], "max_tokens": chance.randrange(*tokens),
                "temperature": (0, 0.7, 1.0)[i % 3], "seed": 1000 + i, "ignore_eos": True, "stream": True, "return_token_ids": True}
        if choices > 1 and i % 3 == 1:
            body["n"] = choices
            body["max_tokens"] //= 2
        requests.append(body)
    if stops:
        for body in requests[2::4]:
            body["stop"] = None  # Reference.of chooses one that occurs
    return requests


def give_stops(requests, said):
    """A stop string for those that want one: what stands in the last third of their own text, and not before."""
    for i, body in enumerate(requests):
        if "stop" in body:
            text = said[i][0][0]
            start = next((s for s in range(len(text) * 2 // 3, len(text) - 9) if text.find(text[s:s + 9]) == s), None)
            del body["stop"]
            if start is not None:
                body["stop"] = [text[start:start + 9]]


async def references(requests, logs):
    """{place in the deck: what was said}; completes the deck's stop strings."""
    port = free_port()
    process = Process("embedded", [BIN / "switchyard", "serve", MODEL, "--http", f"127.0.0.1:{port}", "--grpc", f"127.0.0.1:{free_port()}",
                                   "--threads", 2, "--kv-memory", "128MiB"], logs)

    async def is_ready():
        return (await http.get(port, "/ready"))[0] == 200

    try:
        process.start()
        await until(is_ready, START_SECONDS, "embedded server ready")
        wants_stops = any("stop" in body for body in requests)
        plain = [{k: v for k, v in body.items() if k != "stop"} for body in requests]
        said = await asyncio.wait_for(load.ask_all(plain, lambda: port), 300)
        if wants_stops:
            give_stops(requests, said)
            said = await asyncio.wait_for(load.ask_all(requests, lambda: port), 300)
        return said
    finally:
        process.kill()
