# SPDX-License-Identifier: Apache-2.0
"""Compiles kernels, programs and the checker with nvcc and a C++ compiler alone; objects are kept by what they were made of."""
import concurrent.futures
import hashlib
import os
import pathlib
import shutil
import subprocess
import sysconfig

ROOT = pathlib.Path(__file__).resolve().parents[3]
KERNELS = ROOT / "services/kernels/cuda"
HERE = ROOT / "tools/bench/gpu_bench"
CXX_FLAGS = ["-std=c++20", "-O2", "-Wall", "-Wextra", "-Wno-missing-field-initializers"]


class BuildError(Exception):
    """Says what is missing or did not compile."""


def find_nvcc():
    for name in (os.environ.get("CUDACXX"), shutil.which("nvcc"), "/usr/local/cuda/bin/nvcc"):
        if name and shutil.which(name):
            return pathlib.Path(shutil.which(name))
    raise BuildError("no CUDA compiler (nvcc) was found; CUDACXX may name one")


def find_cxx():
    for name in (os.environ.get("CXX"), "g++", "c++", "clang++"):
        if name and shutil.which(name):
            return shutil.which(name)
    raise BuildError("no C++ compiler was found; CXX may name one")


def arch_of(capability):
    """nvcc's name for a compute capability such as "9.0"."""
    major, minor = map(int, capability.split("."))
    if major < 8:
        raise BuildError(f"compute capability {capability}; 8.0 (A100) or newer is needed")
    return "sm_80" if major == 8 else "sm_90a" if (major, minor) == (9, 0) else "sm_100"


def gencode(arch):
    number = arch.removeprefix("sm_")
    code = f"[sm_{number},compute_{number}]" if number == "100" else f"sm_{number}"  # for what is newer, too
    return f"-gencode=arch=compute_{number},code={code}"


def pip_cublas():
    """Where PyPI's cuBLAS lies beside the running Python: (library, folder of headers), None where it does not."""
    base = pathlib.Path(sysconfig.get_paths()["purelib"]) / "nvidia"
    library = next(iter(sorted(base.glob("c*/lib/libcublasLt.so.*"))), None)
    header = next(iter(sorted(base.glob("c*/include/cublasLt.h"))), None)
    return library, header and header.parent


def cublas():
    """A libcublasLt that the loader may not know, or None."""
    toolkit = find_nvcc().resolve().parents[1]
    found = [pip_cublas()[0], *(toolkit / folder / "libcublasLt.so" for folder in ("lib64", "lib", "targets/x86_64-linux/lib", "targets/sbsa-linux/lib"))]
    return next((p for p in found if p is not None and p.exists()), None)


def include_flags(nvcc):
    """-I of cuBLASLt's header where the toolkit has none."""
    folders = [nvcc.resolve().parents[1] / "include", *nvcc.resolve().parents[1].glob("targets/*/include")]
    _, pip = pip_cublas()
    if any((f / "cublasLt.h").exists() for f in folders) or pip is None:
        return []
    return [f"-isystem={pip}"]


def digest(*parts):
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()[:16]


def headers(*folders):
    return digest(*(p.read_bytes() for folder in folders for p in sorted(folder.iterdir()) if p.suffix in (".h", ".cuh")))


class Builder:
    def __init__(self, directory, arch, jobs=os.cpu_count(), say=print):
        self.directory, self.arch, self.jobs, self.say = directory, arch, jobs, say
        self.of_kernels, self.of_all = headers(KERNELS), headers(KERNELS, HERE)

    def run(self, command, output):
        """Makes `output` by a command that writes it, unless it is there."""
        if output.exists():
            return output
        self.directory.mkdir(parents=True, exist_ok=True)
        part = output.with_suffix(output.suffix + ".part")
        done = subprocess.run([*map(str, command), "-o", str(part)], cwd=ROOT, capture_output=True, text=True)
        if done.returncode != 0:
            raise BuildError(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
        part.rename(output)
        return output

    def objects(self, sources):
        nvcc = find_nvcc()
        flags = ["-std=c++20", "-O3", gencode(self.arch), f"-I{ROOT}", "-Xcompiler=-fPIC,-Wall,-Wextra,-Wno-missing-field-initializers", *include_flags(nvcc)]

        def one(source):
            name = digest(nvcc, flags, self.of_kernels if source.parent == KERNELS else self.of_all, source.read_bytes())
            return self.run([nvcc, *flags, "-c", source], self.directory / f"{source.stem}-{name}.o")

        with concurrent.futures.ThreadPoolExecutor(self.jobs) as pool:
            return list(pool.map(one, sources))

    def link(self, name, objects, flags):
        output = self.directory / f"{name}-{digest(*objects, flags)}"
        return self.run([find_nvcc(), gencode(self.arch), "-cudart", "static", *flags, *objects, "-ldl"], output)

    def kernels(self):
        self.say(f"compiling the kernels for {self.arch} in {self.directory}")
        return self.objects(sorted(KERNELS.glob("*.cu")))

    def programs(self):
        return self.link("gpu_bench", self.kernels() + self.objects(sorted(HERE.glob("*.cu"))), [])

    def plugin(self):
        return self.link("libswitchyard_cuda.so", self.kernels(), ["-shared"])

    def checker(self):
        """Needs no CUDA compiler: it knows the plugin by its tables."""
        cxx, sources = find_cxx(), sorted(HERE.glob("check*.cc"))
        name = digest(cxx, CXX_FLAGS, self.of_all, *(s.read_bytes() for s in sources))
        return self.run([cxx, *CXX_FLAGS, f"-I{ROOT}", *sources, "-ldl"], self.directory / f"gpu_check-{name}")
