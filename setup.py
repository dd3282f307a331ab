"""Build of the package: pyproject.toml holds the settings of the tools, this file the rest.

The kernels are one shared library without any Python in it: setuptools builds it as an extension
so that it lands beside the package; it is opened by path (backends/cpu/library.py), never imported.
"""

import ctypes
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
CSRC = Path("mindformers_glm/backends/cpu/csrc")
KEPT = ROOT / "build/kernels"  # every `pip install` of an extra builds the package again

_SERVE = [
    "starlette>=0.40",  # routes and CORS; fields of requests have tables of our own
    "uvicorn[standard]>=0.30",  # the HTTP server, with httptools and uvloop
    "prometheus-client>=0.20",  # the text of /metrics
    "llguidance>=1.9.1,<2",  # masks of tokens for answers in a form
]


def read_version() -> str:
    """The version, read without importing the package: its imports may not be installed yet."""
    text = (ROOT / "mindformers_glm/version.py").read_text()
    return re.search(r'__version__ = "(.+)"', text).group(1)


def hash_sources() -> str:
    """Names the C++ sources; library.py computes the same to notice an outdated library."""
    digest = hashlib.sha256()
    for path in sorted((ROOT / CSRC).rglob("*")):
        if path.suffix in (".cc", ".h"):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def hash_build(compiler: str) -> str:
    """Names all that a library follows from: sources, flags, compiler, kind of processor."""
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False)
    parts = (hash_sources(), Path(__file__).read_text(), compiler, version.stdout)
    return hashlib.sha256("\0".join((*parts, platform.machine())).encode()).hexdigest()[:16]


class BuildKernels(build_ext):
    """Compiles with plain g++ (or $CXX) and our own flags, not with those Python was built with."""

    def build_extension(self, ext: Extension) -> None:
        """Take the library that an install before made of the same, or compile it."""
        compiler = os.environ.get("CXX", "g++")
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        kept = KEPT / f"{hash_build(compiler)}.so"
        if not kept.exists():
            self._compile(ext, compiler, target)
            shutil.rmtree(KEPT, ignore_errors=True)
            KEPT.mkdir(parents=True)
            being_written = kept.with_suffix(".tmp")
            shutil.copy(target, being_written)
            being_written.replace(kept)
        shutil.copy(kept, target)
        warn_of_what_is_left_out(target)

    def _compile(self, ext: Extension, compiler: str, target: Path) -> None:
        """All sources at once; setuptools compiles one after another."""
        objects = Path(self.build_temp) / "kernels"
        objects.mkdir(parents=True, exist_ok=True)
        macros = [f"-D{name}={value}" for name, value in ext.define_macros]

        def compile_source(source: str) -> str:
            output = str(objects / (Path(source).stem + ".o"))
            self.spawn([compiler, *ext.extra_compile_args, *macros, "-c", source, "-o", output])
            return output

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            built = list(pool.map(compile_source, ext.sources))
        self.spawn([compiler, "-shared", *built, *ext.extra_link_args, "-o", str(target)])


def warn_of_what_is_left_out(library: Path) -> None:
    """Say which instruction sets the compiler could not build: without them it is slow."""
    try:
        kernels = ctypes.CDLL(str(library.resolve()))
    except OSError:  # built for another machine
        return
    kernels.glm_compiler.restype = kernels.glm_left_out.restype = ctypes.c_char_p
    if left_out := kernels.glm_left_out().decode():
        print(
            f"warning: {kernels.glm_compiler().decode()} builds the kernels without {left_out}: "
            "they will be many times slower. Set CXX to g++ 11 or later.",
            file=sys.stderr,
        )


setup(
    name="mindformers-glm",
    version=read_version(),
    description="GLM models for MindSpore Transformers, on Ascend and on a plain CPU",
    long_description=(ROOT / "README.md").read_text() if (ROOT / "README.md").exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10,<3.12",
    packages=find_packages(include=["mindformers_glm", "mindformers_glm.*"]),
    package_data={"mindformers_glm": ["assets/*/*"]},
    data_files=[
        (
            f"share/mindformers_glm/configs/{folder.name}",
            sorted(str(p.relative_to(ROOT)) for p in folder.glob("*.yaml")),
        )
        for folder in sorted(ROOT.glob("configs/*"))
    ],
    ext_modules=[
        Extension(
            "mindformers_glm.backends.cpu._kernels",
            sources=sorted(str(p.relative_to(ROOT)) for p in (ROOT / CSRC).rglob("*.cc")),
            depends=sorted(str(p.relative_to(ROOT)) for p in (ROOT / CSRC).rglob("*.h")),
            define_macros=[("GLM_SOURCE_HASH", f'"{hash_sources()}"')],
            extra_compile_args=[
                "-std=c++17",
                "-O3",
                "-fPIC",
                "-fopenmp",
                "-fvisibility=hidden",
                "-fno-math-errno",
                # A product and a sum are fused where the code says so and nowhere else: what a
                # compiler fuses by itself differs between instruction sets, and so would bits.
                "-ffp-contract=off",
                "-Wall",
                "-Wno-ignored-attributes",  # of __m512 as a template argument
                # GCC 12 warns about its own AVX-512 headers (GCC bug 105593).
                "-Wno-uninitialized",
                "-Wno-maybe-uninitialized",
                # clang knows not all of these words, and tells of each loop left as it is.
                "-Wno-unknown-warning-option",
                "-Wno-pass-failed",
            ],
            extra_link_args=["-fopenmp", "-Wl,-z,defs"],
            language="c++",
        )
    ],
    cmdclass={"build_ext": BuildKernels},
    entry_points={
        "console_scripts": ["mindformers-glm = mindformers_glm.serving.cli:main"],
        "vllm.general_plugins": [
            "mindformers_glm = mindformers_glm.vllm_mindspore_plugin:register"
        ],
    },
    install_requires=[
        # mindformers 1.7.0 is the registry we plug into; it pins mindspore, tokenizers and
        # transformers itself, we repeat those whose behaviour our own code depends on.
        "mindspore==2.7.1",
        "mindformers==1.7.0",
        "transformers==4.51.3",
        "tokenizers>=0.21,<0.22",
        "numpy>=1.20,<2",  # mindspore 2.7 shares its bfloat16 type with numpy 1 only
        "scipy>=1.5.4",  # its BLAS, for GPTQ; MindSpore needs it too
        "safetensors>=0.4",
        "sentencepiece>=0.2",  # tokenizer.model of ChatGLM2 and ChatGLM3
        "tiktoken>=0.8",  # tokenizer.model of glm-4-9b; mindformers needs it too
        "pyyaml>=6.0",
        "jinja2>=3.1",  # chat templates
        "tqdm>=4.65",
        "psutil>=5.6.1",  # finds what a job's processes have started; MindSpore needs it too
    ],
    extras_require={
        # The hubs' own clients, for `mindformers-glm download`. modelscope-hub is what modelscope
        # (1.38 and later) itself downloads with; modelscope would bring much that is not needed.
        "download": ["huggingface_hub>=0.30,<1", "modelscope-hub>=0.5,<1"],
        "serve": _SERVE,
        "chat": [
            "prompt_toolkit>=3.0",  # lines that can be edited, with history
            "rich>=13",  # styles on terminals of every kind
        ],
        "web": [
            # 6.18 needs huggingface_hub 1, which transformers 4.51 refuses; 6.10 names a foreign
            # address for a script.
            "gradio>=6.17,<6.18",
            "huggingface_hub<1",
            *_SERVE,  # the page starts a server where it is given none
        ],
        "ray": [
            # 2.60 is what was tried; settings of Serve that are used here came with 2.52.
            "ray[serve,data]>=2.60,<2.61",
            *_SERVE,  # replicas are plain servers
        ],
        "dev": [
            "pytest>=8",
            "pytest-timeout>=2",
            "pytest-xdist>=3.5",  # two processes: most of a test is MindSpore on one core
            "hypothesis>=6",  # finds conversations and templates nobody would think of
            "ruff>=0.6",
            "mypy>=1.10",
            "types-PyYAML",
            "pre-commit>=3",
            "torch==2.13.0",  # Hugging Face on torch is the oracle of the tests
            "openai>=2",  # asks the server as its users do, like the next one
            "anthropic>=0.50",
            "playwright>=1.50",  # drives Debian's chromium, where there is one
        ],
    },
)
