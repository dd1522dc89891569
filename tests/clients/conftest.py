import openai
import pytest

import processes
from etcd import Etcd


@pytest.fixture(scope="session")
def embedded():
    """`switchyard serve models/tiny-r1`, shared by the tests that only ask."""
    with processes.serve() as server:
        server.url = server.fact("http")
        server.fact("ready")
        processes.wait_ready(server.url)
        yield server


@pytest.fixture(scope="session")
def cluster():
    metrics = ("--metrics", "127.0.0.1:0")
    with processes.Cluster(router_args=metrics, worker_args=metrics) as running:
        yield running


@pytest.fixture(scope="session")
def client(embedded):
    return openai.OpenAI(base_url=embedded.url + "/v1", api_key="none", max_retries=0)


@pytest.fixture
def etcd():
    server = Etcd()
    yield server
    server.close()
