"""gRPC with grpcurl (over reflection) and with grpcio: Inference, health, reflection, deadlines, cancellation."""
import importlib
import json
import pathlib
import shutil
import subprocess
import sys

import grpc
import pytest
import requests
from grpc_health.v1 import health_pb2, health_pb2_grpc

import processes


@pytest.fixture(scope="module")
def stubs(tmp_path_factory):
    """Python code of the public proto, made on the spot."""
    out = tmp_path_factory.mktemp("protos")
    protos = processes.ROOT / "protos"
    subprocess.run([sys.executable, "-m", "grpc_tools.protoc", f"-I{protos}", f"--python_out={out}", f"--grpc_python_out={out}",
                    str(protos / "switchyard/v1/inference.proto")], check=True)
    sys.path.insert(0, str(out))
    yield importlib.import_module("switchyard.v1.inference_pb2"), importlib.import_module("switchyard.v1.inference_pb2_grpc")
    sys.path.remove(str(out))


def grpcurl(*args):
    tool = pathlib.Path(sys.executable).parent / "grpcurl"
    assert tool.exists() or shutil.which("grpcurl"), "grpcurl is in tests/requirements.txt"
    out = subprocess.run([str(tool) if tool.exists() else "grpcurl", "-plaintext", *args], capture_output=True, text=True, timeout=60)
    assert out.returncode == 0, out.stderr
    return out.stdout


def test_grpcurl_lists_describes_and_asks(embedded):
    address = embedded.fact("grpc")
    services = grpcurl(address, "list").split()
    assert {"switchyard.v1.Inference", "grpc.health.v1.Health"} <= set(services)
    assert "Generate" in grpcurl(address, "describe", "switchyard.v1.Inference")
    assert json.loads(grpcurl("-d", "{}", address, "grpc.health.v1.Health/Check")) == {"status": "SERVING"}
    body = json.dumps({"chat": {"messages": [{"role": "user", "content": "What is 37 + 48 - 5?"}]}, "sampling": {"temperature": 0}})
    out = grpcurl("-d", body, address, "switchyard.v1.Inference/Generate")
    text, decoder, at = "", json.JSONDecoder(), 0
    while at < len(out.rstrip()):
        message, at = decoder.raw_decode(out, at)
        at += len(out[at:]) - len(out[at:].lstrip())
        text += "".join(c.get("text", "") for c in message.get("choices", []))
    assert "80" in text


def test_router_and_worker_have_health_and_reflection(cluster):
    for address, service in ((cluster.router.fact("listening"), "switchyard.internal.v1.Router"),
                             (cluster.workers[0].fact("listening"), "switchyard.internal.v1.ExpertWorker")):
        assert service in grpcurl(address, "list")
        assert json.loads(grpcurl("-d", "{}", address, "grpc.health.v1.Health/Check")) == {"status": "SERVING"}
    described = json.loads(grpcurl("-d", "{}", cluster.workers[0].fact("listening"), "switchyard.internal.v1.ExpertWorker/Describe"))
    assert described["hello"]["numerics_id"]


def test_same_answer_over_grpc_and_http(embedded, stubs):
    pb, rpc = stubs
    with grpc.insecure_channel(embedded.fact("grpc")) as channel:
        inference = rpc.InferenceStub(channel)
        assert [m.id for m in inference.ListModels(pb.ListModelsRequest()).models] == ["tiny-r1"]
        ids = inference.Tokenize(pb.TokenizeRequest(prompt="Hello, world!")).ids
        assert list(ids) == requests.post(embedded.url + "/tokenize", json={"model": "tiny-r1", "prompt": "Hello, world!"}, timeout=10).json()["tokens"]
        assert inference.Detokenize(pb.DetokenizeRequest(ids=ids[1:])).text == "Hello, world!"
        request = pb.GenerateRequest(prompt_ids=pb.TokenIds(ids=[5, 17, 300]), max_tokens=12, return_token_ids=True, top_logprobs=2,
                                     sampling=pb.Sampling(temperature=0.9, seed=5, ignore_eos=True))
        got, usage = [], None
        for response in inference.Generate(request):
            got += [i for c in response.choices for i in c.token_ids]
            usage = response.usage if response.HasField("usage") else usage
        assert usage.completion_tokens == len(got) == 12
    http = requests.post(embedded.url + "/v1/completions", timeout=60, json={"model": "tiny-r1", "prompt": [5, 17, 300], "max_tokens": 12, "temperature": 0.9,
                                                                             "seed": 5, "ignore_eos": True, "return_token_ids": True})
    assert http.json()["choices"][0]["token_ids"] == got


def test_deadline_and_cancellation_travel_to_the_router(embedded, stubs):
    pb, rpc = stubs
    request = pb.GenerateRequest(prompt_ids=pb.TokenIds(ids=[5]), max_tokens=4000, sampling=pb.Sampling(temperature=0, ignore_eos=True))

    def ended():
        """Choices that ended early, and at their length. At its deadline the router ends one by itself (error), or the gateway does (cancelled)."""
        cancelled, error, length = (metric(embedded.url, f'switchyard_router_requests_total{{finish="{finish}"') for finish in ("cancelled", "error", "length"))
        return cancelled + error, length

    processes.wait_for(lambda: metric(embedded.url, "switchyard_router_running_sequences") == 0)
    early, length = ended()
    with grpc.insecure_channel(embedded.fact("grpc")) as channel:
        inference = rpc.InferenceStub(channel)
        with pytest.raises(grpc.RpcError) as error:
            list(inference.Generate(request, timeout=0.3))
        assert error.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        call = inference.Generate(request)
        next(iter(call))
        call.cancel()
    processes.wait_for(lambda: ended()[0] >= early + 2)
    assert ended() == (early + 2, length)


def metric(url, name):
    for line in requests.get(url + "/metrics", timeout=10).text.splitlines():
        if line.startswith(name) and line[len(name)] in " {,":
            return float(line.rsplit(" ", 1)[1])
    raise AssertionError(f"no metric {name}")


def test_errors_name_the_field(embedded, stubs):
    pb, rpc = stubs
    with grpc.insecure_channel(embedded.fact("grpc")) as channel:
        inference = rpc.InferenceStub(channel)
        for bad, name in ((pb.GenerateRequest(prompt="x", sampling=pb.Sampling(top_p=3)), "top_p"),
                          (pb.GenerateRequest(prompt_ids=pb.TokenIds(ids=[70000])), "70000"),
                          (pb.GenerateRequest(), "prompt_ids")):
            with pytest.raises(grpc.RpcError) as error:
                list(inference.Generate(bad))
            assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT
            assert name in error.value.details()


def test_health_watch_says_not_serving_while_draining():
    with processes.worker("0-127") as worker, processes.router([worker.fact("listening")]) as router:
        with grpc.insecure_channel(router.fact("listening")) as channel:
            watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=""))
            for update in watch:
                if update.status == health_pb2.HealthCheckResponse.SERVING:
                    break
        assert router.stop() == 0
