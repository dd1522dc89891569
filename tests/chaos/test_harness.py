# SPDX-License-Identifier: Apache-2.0
"""What the chaos script makes of what it saw: gaps, stalls, changed tokens, bounds; and its command line."""
import array
import asyncio
import json
import pathlib
import subprocess

import pytest

from harness import deck, load, main, measure, processes

RUN = pathlib.Path(__file__).parent / "run"


def record(times, tokens=None, began=0.0, ended=None, slot=0, finish="length", done=True, **more):
    choice = load.Choice(array.array("i", tokens or range(len(times))), array.array("d", times), ["x"] * len(times), finish)
    return load.Record(0, began, slot, status=200, choices={0: choice}, done=done, ended=ended or times[-1], **more)


def test_percentiles_are_of_the_nearest_rank():
    assert [measure.percentile(range(1, 101), p) for p in (0.5, 0.99, 1)] == [50, 99, 100]
    assert measure.percentile([7], 0.99) == 7 and measure.percentile([], 0.5) is None


def test_gaps_that_reach_into_a_window_count_even_if_nothing_arrives_in_it():
    frozen = record([1.0, 1.1, 6.1, 6.2])
    assert measure.gaps([frozen], (2, 5)) == [5.0]
    assert [round(g, 3) for g in measure.gaps([frozen], (0, 1.05), (6.15, 9))] == [0.1, 0.1]
    assert measure.gaps([frozen], (7, 9)) == []


def test_a_stall_is_the_longest_silence_of_a_slot():
    slow = record([1.0, 1.2, 3.2], slot="a")
    late = record([9.0], began=4.0, slot="a")  # the first token counts from the request
    other = record([1.0, 1.1], slot="b")
    assert sorted(measure.stalls([slow, late, other], 1.05, 3)) == [pytest.approx(0.1), pytest.approx(2.0)]
    assert sorted(measure.stalls([slow, late, other], 1.05, 5)) == [pytest.approx(0.1), pytest.approx(5.0)]
    assert sorted(measure.stalls([slow, other], 0.5, 3, whole=True)) == [pytest.approx(0.1), pytest.approx(0.2)], "what a fault after it did is not counted"
    hung = record([1.0], ended=21.0, finish=None, done=False, hung=True, error="silent", slot="c")
    assert measure.stalls([hung], 2, 3) == [20.0]


def test_what_is_said_is_compared_and_of_broken_streams_as_far_as_it_came():
    reference = {0: ("xxxx", [0, 1, 2, 3], "length")}
    assert not measure.changed(record([1, 2, 3, 4]), reference)
    assert measure.changed(record([1, 2, 3, 4], tokens=[0, 1, 9, 3]), reference)
    assert measure.changed(record([1, 2, 3, 4], finish="stop"), reference)
    assert measure.changed(record([1, 2, 3]), reference), "one that ended well must be whole"
    broken = dict(finish=None, done=False, error="broken")
    assert not measure.changed(record([1, 2, 3], **broken), reference)
    assert measure.changed(record([1, 2, 3], tokens=[0, 1, 1], **broken), reference), "a token twice"


def test_rows_are_judged_and_combined_by_medians_but_the_worst_of_what_may_not_happen():
    def row(failed, stall, bound=300):
        return measure.judge({"name": "n", "requests": 10, "failed": failed, "tokens_changed": 0, "stall_p99_ms": stall,
                              "bounds": {"failed": ["<=", 0], "stall_p99_ms": ["<=", bound]}})

    assert row(0, 299)["pass"] and not row(0, 301)["pass"] and not row(1, 1)["pass"] and not row(0, None)["pass"]
    whole = measure.combine([row(0, 100, 200), row(0, 900, 300), row(0, 150, 250)])
    assert whole["pass"] and whole["stall_p99_ms"] == 150 and whole["bounds"]["stall_p99_ms"] == ["<=", 250] and whole["requests"] == 30
    assert measure.combine([row(0, 1), row(1, 1), row(0, 1)])["misses"] == ["failed is 1, must be <= 0"]
    assert measure.combine([row(0, 1), measure.judge({"name": "n", "requests": 0, "error": "it fell"})])["misses"] == ["it fell"]
    least = measure.judge({"name": "n", "share": 0.8, "bounds": {"share": [">=", 0.9]}})
    assert least["misses"] == ["share is 0.8, must be >= 0.9"]


def events(*payloads):
    return b"".join(b"data: " + (p if isinstance(p, bytes) else json.dumps(p).encode()) + b"\n\n" for p in payloads)


def chunk(index, tokens, text, finish=None):
    return {"choices": [{"index": index, "token_ids": tokens, "text": text, "finish_reason": finish}]}


def heard(data, piece):
    """What an exchange makes of an answer that comes in such pieces."""
    async def go():
        got = load.Record(0, 0.0)
        exchange = load.Exchange(b"", got, asyncio.get_running_loop().time)
        for i in range(0, len(data), piece):
            exchange.data_received(data[i:i + piece])
        exchange.connection_lost(None)
        return got

    return asyncio.run(go())


@pytest.mark.parametrize("piece", [1, 7, 100000])
def test_streams_are_read_whatever_pieces_they_come_in(piece):
    head = b"HTTP/1.1 200 OK\r\nx: y\r\n\r\n"
    good = heard(head + events(chunk(0, [5], "a"), chunk(1, [6], "ü"), chunk(0, [7], "b", "length"), chunk(1, [], "", "stop"), b"[DONE]"), piece)
    assert good.ok and good.said() == {0: ("ab", [5, 7], "length"), 1: ("ü", [6], "stop")} and good.tokens == 3
    assert not heard(head + events(chunk(0, [5], "a", "length")), piece).ok, "no [DONE]"
    broken = heard(head + events(chunk(0, [5], "a"), {"error": {"message": "lost"}}, b"[DONE]"), piece)
    assert not broken.ok and broken.error == "lost"
    refused = heard(b"HTTP/1.1 429 Too Many\r\nretry-after: 1\r\n\r\n{\"error\":{}}", piece)
    assert refused.shed and not refused.ok and refused.error == '{"error":{}}'
    assert heard(b"", 1).error.startswith("no answer")


def test_stop_strings_occur_late_and_not_before():
    requests = deck.deck(8, stops=True)
    text = "".join(chr(97 + i * 7 % 26) + str(i) for i in range(60))
    deck.give_stops(requests, {i: {0: (text, [], "length")} for i in range(8)})
    assert [i for i, body in enumerate(requests) if "stop" in body] == [2, 6]
    assert all(text.index(body["stop"][0]) >= len(text) * 2 // 3 for body in requests if "stop" in body)


def test_processes_end_with_whoever_started_them(tmp_path):
    process = processes.Process("sleeper", ["sleep", "1000"], tmp_path).start()
    assert process.running() and process.memory() > 0
    assert asyncio.run(process.terminate(10)) == -15
    assert "start 0: sleep 1000" in process.log.read_text()


def test_the_command_line_says_what_it_wants(tmp_path):
    def run(*args, **env):
        return subprocess.run([RUN, *args], capture_output=True, text=True, timeout=60, env={"PATH": "/usr/bin:/bin", **env})

    assert list(main.TABLE) == [line.split()[0] for line in run("--list").stdout.splitlines()]
    assert "--only kill_router" in run("--help").stdout
    for args, says in ((("--json", "-", "--only", "nonsense"), "nonsense"), (("--json", "-", "--runs", "0"), "--runs")):
        done = run(*args)
        assert done.returncode == 2 and says in done.stderr
    done = run("--json", "-", SWITCHYARD_BIN_DIR=str(tmp_path))
    assert done.returncode == 2 and "switchyard-router" in done.stderr
