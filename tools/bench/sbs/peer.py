# SPDX-License-Identifier: Apache-2.0
"""llama.cpp, the peer: fetched as PyPI's newest llama-cpp-python vendors it, built natively, and how its tools are read.

Nothing of it enters the tree; its licence (MIT) lies in the folder that it is unpacked into.
"""
import json
import os
import pathlib
import subprocess
import sys
import tarfile

TARGETS = ["llama-quantize", "llama-bench", "llama-batched-bench", "llama-server", "ggml-rpc-server"]
# What a user who builds it for his own machine gets, less the parts that are not measured or want the network.
CMAKE = ["-DCMAKE_BUILD_TYPE=Release", "-DBUILD_SHARED_LIBS=OFF", "-DGGML_RPC=ON", "-DLLAMA_BUILD_TESTS=OFF",
         "-DLLAMA_BUILD_EXAMPLES=OFF", "-DLLAMA_BUILD_APP=OFF", "-DLLAMA_BUILD_UI=OFF", "-DLLAMA_USE_PREBUILT_UI=OFF",
         "-DLLAMA_OPENSSL=OFF"]

# Everything but AMX, where the machine has that: with its AMX buffers it aborts on DeepSeek's quantised attention
# (GGML_ASSERT(*cur_backend_id != -1) in ggml-backend.cpp).
NATIVE = ["-DGGML_NATIVE=ON"]
WITHOUT_AMX = ["-DGGML_NATIVE=OFF"] + [f"-DGGML_{isa}=ON" for isa in (
    "SSE42", "AVX", "AVX2", "BMI2", "FMA", "F16C", "AVX512", "AVX512_VBMI", "AVX512_VNNI", "AVX512_BF16")]


class PeerError(Exception):
    """What is missing, and the command that mends it."""


class Peer:
    """A built peer in `folder`: build/bin/NAME and version.txt."""

    def __init__(self, folder):
        self.folder = pathlib.Path(folder)

    def tool(self, name):
        path = self.folder / "build/bin" / name
        if not path.exists():
            raise PeerError(f"{path} is not there; tools/bench/side_by_side --build-peer --dir {self.folder.parent} builds it")
        return path

    def built(self):
        return self.version() != "unknown" and all((self.folder / "build/bin" / t).exists() for t in TARGETS)

    def version(self):
        path = self.folder / "version.txt"
        return path.read_text().strip() if path.exists() else "unknown"

    def build(self, jobs):
        """Downloads and builds what is not there yet. Minutes on few cores."""
        if self.built():
            print(f"peer: {self.version()} is built in {self.folder}")
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        source = self._unpack(self._download())
        build = self.folder / "build"
        generator = ["-G", "Ninja"] if _has("ninja") else []
        _run("cmake", "-S", source, "-B", build, *generator, *CMAKE, *(WITHOUT_AMX if _has_amx() else NATIVE))
        for target in TARGETS:
            print(f"peer: {target}, with {jobs} jobs", flush=True)
            _run("cmake", "--build", build, "-j", str(jobs), "--target", target)
        (self.folder / "version.txt").write_text(source.parent.parent.name + "\n")
        print(f"peer: built in {build / 'bin'}")

    def _download(self):
        archives = sorted(self.folder.glob("llama_cpp_python-*.tar.gz"))
        if archives:
            return archives[-1]
        venv = self.folder / "venv"  # has pip also where the system's Python has none
        if not (venv / "bin/pip").exists():
            _run(sys.executable, "-m", "venv", venv)
        _run(venv / "bin/pip", "download", "-q", "--no-binary", "llama-cpp-python", "--no-deps", "llama-cpp-python", "-d", self.folder)
        return sorted(self.folder.glob("llama_cpp_python-*.tar.gz"))[-1]

    def _unpack(self, archive):
        source = self.folder / archive.name.removesuffix(".tar.gz") / "vendor/llama.cpp"
        if not (source / "CMakeLists.txt").exists():
            with tarfile.open(archive) as tar:
                tar.extractall(self.folder)
        return source


def _has(program):
    return any((pathlib.Path(p) / program).exists() for p in os.environ.get("PATH", "").split(":"))


def _has_amx():
    return "amx_int8" in pathlib.Path("/proc/cpuinfo").read_text()


def _run(*command):
    try:
        subprocess.run([str(c) for c in command], check=True)
    except FileNotFoundError:
        raise PeerError(f"{command[0]} is not installed; on Debian: apt install cmake ninja-build g++ python3-venv") from None
    except subprocess.CalledProcessError as e:
        raise PeerError(f"{command[0]} ended with status {e.returncode}; its message stands above") from None


def parse_bench(text):
    """tokens/s of each test that `llama-bench -o json` ran, as {"pp512": [samples], "tg64": [samples]}."""
    out = {}
    for test in json.loads(text):
        name = f"pp{test['n_prompt']}" if test["n_prompt"] else f"tg{test['n_gen']}"
        out.setdefault(name, []).extend(test["samples_ts"])
    return out


def parse_batched(text):
    """tokens/s of decode by streams, of `llama-batched-bench --output-format jsonl`: {16: 77.0}."""
    tests = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    return {t["pl"]: t["speed_tg"] for t in tests}
