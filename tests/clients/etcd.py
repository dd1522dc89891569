"""A real etcd for tests, and routers that find what they need by their arguments."""
import base64
import re
import shutil
import socket
import subprocess
import tempfile

import requests

import processes


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Etcd:
    """One member, its data in a directory of its own."""

    def __init__(self, tls=None):
        """`tls`: (certificate, key, CA) of its own, which clients must be signed by too; these show the same certificate."""
        self.dir = tempfile.mkdtemp(prefix="etcd_")
        self.url, self.peer = (f"{scheme}://127.0.0.1:{free_port()}" for scheme in ("https" if tls else "http", "http"))
        self.tls = ("--cert-file", tls[0], "--key-file", tls[1], "--trusted-ca-file", tls[2], "--client-cert-auth") if tls else ()
        self.session = requests.Session()
        self.session.trust_env = False  # whose CA would win over ours
        if tls:
            self.session.cert, self.session.verify = tuple(map(str, tls[:2])), str(tls[2])
        try:
            self.start()
        except BaseException:
            self.close()
            raise

    def start(self):
        self.process = subprocess.Popen(
            ["etcd", "--data-dir", self.dir + "/data", "--listen-client-urls", self.url, "--advertise-client-urls", self.url,
             "--listen-peer-urls", self.peer, "--initial-advertise-peer-urls", self.peer, "--initial-cluster", "default=" + self.peer,
             "--log-level", "error", *self.tls], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        processes.wait_for(self.answers)

    def answers(self):
        try:
            return self.session.get(self.url + "/health", timeout=5).json()["health"] == "true"
        except (requests.ConnectionError, KeyError, ValueError):
            assert self.process.poll() is None, "etcd ended"
            return False

    def kill(self):
        self.process.kill()
        self.process.wait()

    def close(self):
        self.kill()
        shutil.rmtree(self.dir)

    def put(self, key, value):
        body = {name: base64.b64encode(text.encode()).decode() for name, text in (("key", key), ("value", value))}
        self.session.post(self.url + "/v3/kv/put", json=body, timeout=5).raise_for_status()

    def get(self, key):
        """None where there is no such key."""
        body = {"key": base64.b64encode(key.encode()).decode()}
        found = self.session.post(self.url + "/v3/kv/range", json=body, timeout=5).json().get("kvs")
        return base64.b64decode(found[0]["value"]).decode() if found else None


def router(*args):
    return processes.Process("switchyard-router", "--model", processes.MODEL, "--listen", "127.0.0.1:0", "--threads", 1,
                             "--metrics", "127.0.0.1:0", *args)


def metric(process, name, **labels):
    wanted = "".join(f'(?=[^}}]*{key}="{value}")' for key, value in labels.items())
    text = requests.get(process.fact("metrics"), timeout=5).text
    found = re.search(rf"^{name}{{{wanted}[^}}]*}} (\S+)$", text, re.M)
    return float(found[1]) if found else None
