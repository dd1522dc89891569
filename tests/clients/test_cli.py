"""The programs at the terminal: exit statuses, what they say of errors, and where they connect to."""
import contextlib
import http.server
import json
import signal
import subprocess
import threading

import pytest

import processes

SERVICES = ("switchyard-router", "switchyard-gateway", "switchyard-expert-worker")


def run(*args, seconds=60):
    return subprocess.run([str(processes.BIN / args[0]), *map(str, args[1:])], capture_output=True, text=True, timeout=seconds, stdin=subprocess.DEVNULL)


@pytest.mark.parametrize("args, program, says", [
    (["switchyard"], "switchyard", "a command is missing"),
    (["switchyard", "serv"], "switchyard", 'unknown command "serv"; did you mean serve?'),
    (["switchyard", "--foo"], "switchyard", "--foo"),
    (["switchyard", "chat", "--foo"], "switchyard chat", "--foo"),
    (["switchyard", "bench", "--concurrency", "0"], "switchyard bench", "--concurrency"),
    (["switchyard", "inspect"], "switchyard inspect", "model"),
    (["switchyard", "serve", "DIR", "--foo"], "switchyard serve", "--foo"),
    *[([name, "--foo"], name, "--foo") for name in SERVICES],
    *[([name, "--log-level", "loud"], name, "loud") for name in SERVICES],
])
def test_a_wrong_command_line_ends_with_2_and_leads_to_help(args, program, says):
    done = run(*args)
    assert done.returncode == 2
    assert done.stderr.startswith(program + ": ") and says in done.stderr
    assert done.stderr.endswith(f"See {program} --help\n")


LISTEN = ["--listen", "127.0.0.1:0"]
HTTP_AND_GRPC = ["--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0"]


@pytest.mark.parametrize("args, program", [
    (["switchyard", "serve", "/nowhere", *HTTP_AND_GRPC], "switchyard serve"),
    (["switchyard", "inspect", "/nowhere"], "switchyard inspect"),
    (["switchyard", "place", "/nowhere"], "switchyard place"),
    (["switchyard-router", "--model", "/nowhere", "--workers", "127.0.0.1:1", *LISTEN], "switchyard-router"),
    (["switchyard-gateway", "--model", "/nowhere", "--routers", "127.0.0.1:1", *HTTP_AND_GRPC], "switchyard-gateway"),
    (["switchyard-expert-worker", "--model", "/nowhere", "--experts", "0", *LISTEN], "switchyard-expert-worker"),
])
def test_a_failure_ends_with_1_and_bears_the_programs_name(args, program):
    done = run(*args)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith(program + ": ") and "/nowhere" in last


@pytest.mark.parametrize("args", [["--version"], ["version"], ["--help"], ["chat", "--help"], ["serve", "--help"]])
def test_help_and_version_end_with_0(args):
    done = run("switchyard", *args)
    assert (done.returncode, done.stderr) == (0, "") and done.stdout


@pytest.mark.parametrize("args", [[], ["chat"], ["bench"], ["inspect"], ["place"], ["quantize"], ["top"], ["version"], ["serve"]])
def test_help_of_every_command_looks_the_same(args):
    text = run("switchyard", *args, "--help").stdout
    assert "Print this help and exit" in text
    for raw in ("\n\n\n", "TEXT:", "TEXT=", "INT", "FLOAT", "REQUIRED", "{false}", "Env:"):
        assert raw not in text
    assert not text.endswith("\n\n")
    assert max(map(len, text.partition("Examples:")[0].splitlines())) <= 100


def test_examples_are_those_of_the_command():
    assert "Examples:" not in run("switchyard", "version", "--help").stdout
    assert "switchyard serve models/tiny-r1" not in run("switchyard", "bench", "--help").stdout


def test_the_version_flag_and_command_print_the_same():
    assert run("switchyard", "--version").stdout == run("switchyard", "version").stdout


@pytest.mark.parametrize("args", [["chat", "--once", "x"], ["bench"], ["bench", "--model", "m", "--prompts", __file__, "--warmup", "0", "--requests", "1"]])
def test_where_nobody_listens_they_say_what_to_do(args, tmp_path):
    for url in ("http://127.0.0.1:1/v1", f"unix:{tmp_path}/none"):
        done = run("switchyard", *args, "--url", url)
        assert done.returncode == 1
        assert f"no server listens at {url}" in done.stderr and "switchyard serve" in done.stderr


def test_a_url_may_end_with_v1(embedded):
    done = run("switchyard", "chat", "--url", embedded.url + "/v1", "--once", "Who are you?", "--temperature", "0")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_unix_sockets_are_printed_and_taken_as_they_are(tmp_path):
    where = f"unix:{tmp_path}/http"
    with processes.Process("switchyard", "serve", processes.MODEL, "--http", where, "--grpc", f"unix:{tmp_path}/grpc", "--threads", 1) as server:
        assert server.fact("http") == where
        server.fact("ready")
        done = run("switchyard", "chat", "--url", where, "--once", "Who are you?", "--temperature", "0")
        assert done.returncode == 0 and done.stdout.strip(), done.stderr
        done = run("switchyard", "bench", "--url", where, "--requests", 4, "--concurrency", 2, "--max-tokens", 8, "--json", "-")
        assert done.returncode == 0, done.stderr
        report = json.loads(done.stdout)
        assert report["output_tokens"] == 32 and report["client"]["commit"]
        assert report["server"]["gateway"]["threads"] == "1"
        check_server(report["server"], workers=1)


def check_server(server, workers):
    router, = server["routers"]
    assert server["gateway"]["version"] and router["router_id"] and len(router["workers"]) == workers
    assert all(w["address"] for w in router["workers"])
    for service in (router, *router["workers"]):
        assert service["isa"] and service["version"] and service["commit"] and service["threads"] == 1


def test_bench_tells_what_a_clusters_services_run_on(cluster):
    done = run("switchyard", "bench", "--url", cluster.url, "--requests", 2, "--max-tokens", 4, "--json", "-")
    assert done.returncode == 0, done.stderr
    check_server(json.loads(done.stdout)["server"], workers=3)


def bench_at_rate(url, *args):
    done = run("switchyard", "bench", "--url", url, "--rate", 400, "--requests", 24, "--max-tokens", 16, "--json", "-", *args)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_rate_counts_times_from_the_arrival(embedded):
    free = bench_at_rate(embedded.url)
    assert free["options"]["concurrency"] == 1024 and free["delayed"] == 0
    capped = bench_at_rate(embedded.url, "--concurrency", 1)
    assert capped["options"]["concurrency"] == 1 and 0 < capped["delayed"] < 24
    # The last waits for nearly all others: its time to first token is near that of the whole run.
    assert capped["delay_ms"]["max"] < capped["ttft_ms"]["max"] <= 1e3 * capped["seconds"]
    assert capped["ttft_ms"]["max"] > 0.5e3 * capped["seconds"]
    done = run("switchyard", "bench", "--url", embedded.url, "--rate", 400, "--requests", 24, "--max-tokens", 16, "--concurrency", 1)
    assert "requests waited for another to end, as --concurrency allows no more" in done.stdout


def test_where_every_request_fails_the_error_is_told_once(embedded):
    done = run("switchyard", "bench", "--url", embedded.url, "--model", "nope", "--requests", 4)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("switchyard bench: every request failed: HTTP 404: ")
    assert len(done.stderr.splitlines()) == 1


def test_inspect_says_what_it_expects():
    for model in ("/nowhere", __file__):
        done = run("switchyard", "inspect", model)
        assert done.returncode == 1 and done.stderr.startswith("switchyard inspect: ")
        assert model in done.stderr and "expected a Hugging Face directory or a .gguf file" in done.stderr


def test_inspect_shows_what_sliding_windows_give_back():
    golden = processes.ROOT / "tests/golden/models"
    text = run("switchyard", "inspect", str(golden / "gpt-oss-tiny")).stdout
    assert "KV a token     512 B in bfloat16" in text
    assert "once behind  the sliding windows: 256 B in bfloat16" in text  # one of its two layers sees all
    assert "once behind" not in run("switchyard", "inspect", str(golden / "olmoe-tiny")).stdout


def test_chat_takes_numbers_only(embedded):
    lines = "/temperature abc\n/temperature 0x\n/max x\n/max -1\n/temperature 0.5\n/max 3\n/quit\n"
    done = subprocess.run([str(processes.BIN / "switchyard"), "chat", "--url", embedded.url], input=lines, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    for line in ("/temperature abc: expected", "/temperature 0x: expected", "/max x: expected", "/max -1: expected"):
        assert line in done.stdout
    assert done.stdout.count("expected") == 4


def talk(url, lines, *args):
    return subprocess.run([str(processes.BIN / "switchyard"), "chat", "--url", url, "--temperature", "0", *args], input=lines, capture_output=True, text=True, timeout=60)


def test_chat_says_that_an_answer_was_cut_off(embedded):
    done = run("switchyard", "chat", "--url", embedded.url, "--once", "Who are you?", "--temperature", "0", "--max-tokens", 3)
    assert (done.returncode, done.stderr) == (0, "(cut off after 3 tokens; --max-tokens)\n")
    done = run("switchyard", "chat", "--url", embedded.url, "--once", "Who are you?", "--temperature", "0")
    assert (done.returncode, done.stderr) == (0, "")
    done = talk(embedded.url, "/max 2\nWho are you?\n")
    assert (done.returncode, done.stderr) == (0, "(cut off after 2 tokens; /max)\n")


@contextlib.contextmanager
def fake_server(answer):
    """A server that lists a model; `answer(handler)` answers a chat."""
    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *args):
            pass

        def do_GET(self):
            self.say(200, b'{"data":[{"id":"m"}]}')

        def do_POST(self):
            self.rfile.read(int(self.headers["content-length"]))
            answer(self)

        def say(self, status, body):
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()


def test_a_script_that_chats_ends_at_an_error():
    with fake_server(lambda handler: handler.say(503, b'{"error":{"message":"not now"}}')) as url:
        done = talk(url, "hello\n/max oops\n")
        assert done.returncode == 1
        assert done.stderr.startswith("switchyard chat: ") and "HTTP 503: not now" in done.stderr
        assert "/max oops" not in done.stdout
        assert talk(url, "/again\n/quit\n").returncode == 0  # nothing to ask again


@pytest.mark.parametrize("once", [True, False])
@pytest.mark.parametrize("begun", [True, False])
def test_an_interrupt_ends_chat_while_the_server_is_silent(once, begun):
    asked, over = threading.Event(), threading.Event()

    def answer(handler):
        if begun:
            handler.send_response(200)
            handler.end_headers()
            handler.wfile.write(b'data: {"choices":[{"delta":{"content":"Well"}}]}\n\n')
        asked.set()
        over.wait(60)

    with fake_server(answer) as url:
        args = ["--once", "hello"] if once else []
        chat = subprocess.Popen([str(processes.BIN / "switchyard"), "chat", "--url", url, *args], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        try:
            if not once:
                chat.stdin.write("hello\n")
                chat.stdin.flush()
            assert asked.wait(30)
            out = ""
            while begun and "Well" not in out:
                letter = chat.stdout.read(1)
                assert letter, f"chat ended: {out}"
                out += letter
            chat.send_signal(signal.SIGINT)
            rest, err = chat.communicate(timeout=20)
            out += rest
        finally:
            over.set()
            chat.kill()
    assert (chat.returncode, err) == (130, "")
    assert ("Well" in out) == begun
