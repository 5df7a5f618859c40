"""Builds the native codec modules of csrc/; everything else about the package stands in pyproject.toml.

`sdp4bit_patches._cpu` is built wherever a C++ compiler is found, `sdp4bit_patches._cuda` wherever nvcc is.
SDP4BIT_CUDA=0 leaves the CUDA kernels out, SDP4BIT_CUDA=1 insists on them; the default is `auto`.
"""

import os
import shlex
import shutil
import sysconfig
from glob import glob
from pathlib import Path

import pybind11
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

INCLUDES = ["csrc/include", "csrc/common", pybind11.get_include()]
# A fused multiply-add rounds once where the specification rounds twice, so both compilers are told not to make one.
# -fno-trapping-math lets g++ take a quotient that it may not need, for several groups at once; results stay the same.
# g++ 12 warns about its own AVX-512 headers (-Wmaybe-uninitialized).
CPU_FLAGS = ["-std=c++17", "-O3", "-g0", "-ffp-contract=off", "-fno-trapping-math", "-fvisibility=hidden", "-Wall",
             "-Wextra", "-Wno-maybe-uninitialized", "-pthread"]  # fmt: skip
CUDA_FLAGS = ["-std=c++17", "-O3", "--fmad=false", "-Xcompiler=-fPIC,-fvisibility=hidden", "--threads=2", "-shared"]
CUDA_TARGETS = ["arch=compute_80,code=sm_80", "arch=compute_90,code=[sm_90,compute_90]"]


class BuildNative(build_ext):
    """setuptools' build_ext, with one command to nvcc for `_cuda`."""

    def build_extension(self, ext: Extension) -> None:
        if ext.name != "sdp4bit_patches._cuda":
            return super().build_extension(ext)
        output = Path(self.get_ext_fullpath(ext.name))
        output.parent.mkdir(parents=True, exist_ok=True)
        targets = [f"-gencode={target}" for target in CUDA_TARGETS]
        includes = [f"-I{path}" for path in [*INCLUDES, sysconfig.get_paths()["include"]]]
        self.spawn(
            [nvcc(), *CUDA_FLAGS, *targets, *includes, "-DSDP4BIT_MODULE=_cuda", *ext.sources, "-o", str(output)]
        )


def compiler() -> str | None:
    return shutil.which(shlex.split(os.environ.get("CXX") or sysconfig.get_config_var("CXX") or "c++")[0])


def nvcc() -> str | None:
    return shutil.which("nvcc") or shutil.which("nvcc", path=os.environ.get("CUDA_HOME", "/usr/local/cuda") + "/bin")


def native_modules() -> list[Extension]:
    if not compiler():
        print("C++ compiler not found: native codec not built, the slow reference will run instead")
        return []
    macros = [("SDP4BIT_MODULE", "_cpu")]
    depends = [path for suffix in ("h", "inc", "cuh") for path in glob(f"csrc/**/*.{suffix}", recursive=True)]
    sources = ["csrc/bindings.cpp", *sorted(glob("csrc/cpu/*.cc"))]
    options = {"extra_compile_args": CPU_FLAGS, "extra_link_args": ["-pthread"], "language": "c++"}
    cpu = Extension("sdp4bit_patches._cpu", sources, INCLUDES, macros, depends=depends, **options)
    wish = os.environ.get("SDP4BIT_CUDA", "auto")
    if wish not in ("0", "1", "auto"):
        raise SystemExit(f"SDP4BIT_CUDA={wish}: use 0 (leave out), 1 (insist) or auto (where nvcc is found)")
    if wish == "1" and not nvcc():
        raise SystemExit("SDP4BIT_CUDA=1, but nvcc was not found: put it on PATH or set CUDA_HOME")
    if wish == "0" or not nvcc():
        print(f"CUDA kernels not built: {'SDP4BIT_CUDA=0' if wish == '0' else 'nvcc not found'}")
        return [cpu]
    sources = ["csrc/bindings.cpp", *sorted(glob("csrc/cuda/*.cu"))]
    return [cpu, Extension("sdp4bit_patches._cuda", sources, depends=depends)]


setup(ext_modules=native_modules(), cmdclass={"build_ext": BuildNative}, options={"build_ext": {"parallel": 2}})
