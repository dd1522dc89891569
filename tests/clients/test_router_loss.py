"""Routers that die, drain, freeze and come back under open streams: clients see a pause, no error and the same text."""
import concurrent.futures
import json
import signal
import threading

import pytest
import requests

import processes

STREAMS = 32


def asks():
    """Greedy and sampled, some of three choices, some with stop strings, penalties and log-probabilities."""
    for i in range(STREAMS):
        body = {"model": "tiny-r1", "prompt": [5 + i, 17, 300 + 7 * i, 41] * (1 + i % 5), "max_tokens": 160, "ignore_eos": i % 4 != 1,
                "stream": True, "return_token_ids": True, "temperature": 0, "seed": i, "stream_options": {"include_usage": True}}
        if i % 2:
            body |= {"temperature": 0.9, "top_p": 0.95}
        if i % 4 == 0:
            body |= {"n": 3, "temperature": 0.8, "max_tokens": 90}
        if i % 5 == 2:
            body |= {"frequency_penalty": 0.4, "repetition_penalty": 1.1, "logprobs": 2}
        if i % 3 == 1:
            body |= {"stop": ["the sum", "answer is", " = 1"]}
        yield body


class Progress:
    """Counts the tokens of all streams."""

    def __init__(self):
        self.changed, self.tokens = threading.Condition(), 0

    def add(self, tokens):
        with self.changed:
            self.tokens += tokens
            self.changed.notify_all()

    def wait(self, tokens):
        with self.changed:
            assert self.changed.wait_for(lambda: self.tokens >= tokens, 60), "the streams do not move"


def run(url, body, progress=None):
    """Text, ids, log-probabilities and finish of each choice, and the usage."""
    choices, usage, done = {}, None, False
    with requests.post(url + "/v1/completions", json=body, stream=True, timeout=120) as answer:
        assert answer.status_code == 200, answer.text
        for line in filter(None, answer.iter_lines()):
            assert not done and line.startswith(b"data: ")
            if line == b"data: [DONE]":
                done = True
                continue
            chunk = json.loads(line[6:])
            assert "error" not in chunk, chunk
            usage = chunk.get("usage") or usage
            for choice in chunk["choices"]:
                text, ids, scores, finish = choices.setdefault(choice["index"], ["", [], [], []])
                assert not finish, "something came behind the end of a choice"
                choices[choice["index"]][0] += choice["text"]
                ids.extend(choice.get("token_ids") or [])
                scores.extend((choice.get("logprobs") or {}).get("token_logprobs") or [])
                finish.extend(filter(None, [choice["finish_reason"]]))
                if progress is not None:
                    progress.add(len(choice.get("token_ids") or []))
    assert done and len(choices) == body.get("n", 1)
    assert usage["completion_tokens"] == sum(len(ids) for _, ids, _, _ in choices.values()), "a token was lost or came twice"
    return choices, usage["completion_tokens"]


def run_all(url, disturb=None, after=400):
    """All streams at once; `disturb` is called when so many tokens have come."""
    progress = Progress()
    with concurrent.futures.ThreadPoolExecutor(STREAMS) as pool:
        streams = [pool.submit(run, url, body, progress) for body in asks()]
        if disturb is not None:
            progress.wait(after)
            disturb()
            assert not all(s.done() for s in streams), "nothing was left to disturb"
        return [s.result() for s in streams]


def resumed(url):
    """How often streams went on elsewhere, by reason."""
    lines = requests.get(url + "/metrics", timeout=10).text.splitlines()
    return {line.split('reason="')[1].split('"')[0]: int(float(line.rsplit(" ", 1)[1]))
            for line in lines if line.startswith("switchyard_gateway_resumed_streams_total{")}


class Pair:
    """One worker, two routers at addresses that stay, one gateway."""

    def __init__(self, folder, routers=2, router_args=(), gateway_args=()):
        self.folder, self.router_args, self.processes = folder, router_args, []
        try:
            self.worker = self._add(processes.worker("0-127"))
            self.routers = [self.start(i) for i in range(routers)]
            self.gateway = self._add(processes.gateway([f"unix:{folder}/r{i}" for i in range(routers)], *gateway_args))
            self.url = self.gateway.fact("http")
            processes.wait_for(lambda: self.ready() == routers)
        except BaseException:
            self.__exit__(None, None, None)
            raise

    def _add(self, process):
        self.processes.append(process)
        return process

    def start(self, i):
        (self.folder / f"r{i}").unlink(missing_ok=True)
        router = self._add(processes.router([self.worker.fact("listening")], "--kv-memory", "256MiB", *self.router_args, listen=f"unix:{self.folder}/r{i}"))
        router.fact("ready")
        return router

    def ready(self):
        """Routers that the gateway may send requests to."""
        lines = requests.get(self.url + "/metrics", timeout=10).text.splitlines()
        return sum(line.endswith(" 1") for line in lines if line.startswith("switchyard_gateway_router_ready{"))

    def __enter__(self):
        return self

    def __exit__(self, kind, value, trace):
        for process in self.processes:
            process.__exit__(kind, value, trace)


@pytest.fixture
def pair(tmp_path):
    with Pair(tmp_path) as running:
        yield running


def test_a_router_killed_under_streams_changes_nothing(pair):
    undisturbed = run_all(pair.url)
    assert resumed(pair.url) == {}
    for turn in range(2):  # one, then the other that had all streams then
        victim = pair.routers[turn]
        assert run_all(pair.url, victim.kill) == undisturbed
        pair.routers[turn] = pair.start(turn)
        processes.wait_for(lambda: pair.ready() == 2)
    reasons = resumed(pair.url)
    assert set(reasons) == {"broken"} and reasons["broken"] >= STREAMS // 2, reasons


def test_a_frozen_router_is_given_up_and_what_it_says_later_is_ignored(pair):
    undisturbed = run_all(pair.url)
    victim = pair.routers[0].process
    try:
        assert run_all(pair.url, lambda: victim.send_signal(signal.SIGSTOP)) == undisturbed
        assert set(resumed(pair.url)) == {"silent"}
    finally:
        victim.send_signal(signal.SIGCONT)
    processes.wait_for(lambda: pair.ready() == 2)
    assert run_all(pair.url) == undisturbed


def test_a_frozen_gateway_does_not_take_its_own_sleep_for_its_routers_silence(pair):
    undisturbed = run_all(pair.url)
    gateway = pair.gateway.process

    def freeze():
        gateway.send_signal(signal.SIGSTOP)
        try:
            threading.Event().wait(2)  # twice --router-timeout
        finally:
            gateway.send_signal(signal.SIGCONT)

    assert run_all(pair.url, freeze) == undisturbed
    assert resumed(pair.url) == {}


def test_the_only_router_may_come_back(tmp_path):
    with Pair(tmp_path, routers=1, gateway_args=("--router-wait", "60s")) as alone:
        undisturbed = run_all(alone.url)

        def restart():
            alone.routers[0].kill()
            # Who comes now waits, too.
            body = next(asks())
            with concurrent.futures.ThreadPoolExecutor(1) as pool:
                late = pool.submit(run, alone.url, body)
                alone.routers[0] = alone.start(0)
                assert late.result() == undisturbed[0]

        assert run_all(alone.url, restart) == undisturbed


@pytest.mark.parametrize("drain", ["30s", "50ms"])
def test_routers_restarted_one_after_the_other_under_load(tmp_path, drain):
    """A short drain cuts streams off, which then go on elsewhere; a long one lets them end where they are."""
    with Pair(tmp_path, router_args=("--drain-timeout", drain)) as pair:
        undisturbed = run_all(pair.url)
        over = threading.Event()

        def load(i, body):
            while not over.is_set():
                assert run(pair.url, body) == undisturbed[i]
            return True

        with concurrent.futures.ThreadPoolExecutor(STREAMS) as pool:
            loads = [pool.submit(load, i, body) for i, body in enumerate(asks()) if i % 4 < 2]
            try:
                for i in (0, 1):
                    assert pair.routers[i].stop(seconds=60) == 0
                    pair.routers[i] = pair.start(i)
                    processes.wait_for(lambda: pair.ready() == 2)
            finally:
                over.set()
            assert all(l.result() for l in loads)
        reasons = resumed(pair.url)
        assert set(reasons) <= {"ended", "broken", "refused"}
        assert ("ended" in reasons or "broken" in reasons) == (drain == "50ms"), reasons
