"""Fixtures: small random models, cached exports, the library with every instruction set."""

import ctypes
import json
import os
import shutil

import pytest

from tests.support.models import TINY_MODELS, save_tiny
from tests.support.paths import ISAS, LIBRARY, REFERENCE, SHARED

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """tiny(name) -> folder of the random model TINY_MODELS[name], made once."""
    made = {}

    def make(name):
        if name not in made:
            config_class, settings = TINY_MODELS[name]
            made[name] = save_tiny(tmp_path_factory.mktemp(name), config_class, **settings)
        return made[name]

    return make


@pytest.fixture(scope="session")
def exported(tmp_path_factory):
    """exported(model folder, **options) -> (GGUF path, result of export).

    Made once for equal arguments.
    """
    import gwq_export

    made = {}

    def make(model=REFERENCE, **options):
        key = json.dumps([str(model), options], sort_keys=True, default=str)
        if key not in made:
            path = tmp_path_factory.mktemp("export") / "model.gguf"
            made[key] = path, gwq_export.export(model, path, **{"samples": 4, "ctx": 256} | options)
        return made[key]

    return make


@pytest.fixture(scope="session")
def shared():
    if not SHARED.is_dir():
        pytest.skip("../shared/data is not here")
    return SHARED


@pytest.fixture
def threads(monkeypatch):
    """threads(n): as if this machine had n CPUs, and torch told to use them."""

    import torch

    def choose(count):
        for module in ("native.library", "compute.threads"):
            monkeypatch.setattr(f"gwq_export.{module}.default_threads", lambda: count)
        torch.set_num_threads(count)

    before = torch.get_num_threads()
    yield choose
    torch.set_num_threads(before)


@pytest.fixture
def calib(tmp_path_factory):
    """A calibration text that is read quickly."""
    path = tmp_path_factory.mktemp("text") / "calib.txt"
    path.write_text("The city lay by the river, and the river by the sea. " * 20)
    return path


def simde_library(tmp_path_factory):
    if "GWQ_SIMDE_LIBRARY" in os.environ:
        return os.environ["GWQ_SIMDE_LIBRARY"]
    from native.build import build

    return build(out=tmp_path_factory.mktemp("simde"), simde=True)


@pytest.fixture(scope="session")
def cuda_library(tmp_path_factory):
    """Path of the CUDA library's host build."""
    if "GWQ_CUDA_HOST_LIBRARY" in os.environ:
        return os.environ["GWQ_CUDA_HOST_LIBRARY"]
    if not any(map(shutil.which, ("c++", "g++"))):
        pytest.skip("no C++ compiler (Debian: g++)")
    from native.build_cuda import build_host

    return build_host(tmp_path_factory.mktemp("cuda"))


@pytest.fixture
def shim(cuda_library):
    """The switches of native/cuda/shim.cpp, back as they were afterwards."""
    shim = ctypes.CDLL(str(cuda_library))
    yield shim
    shim.gwq_shim_reverse(0)
    shim.gwq_shim_memory(ctypes.c_size_t(4 << 30))
    shim.gwq_shim_machine(1, 90)
    shim.gwq_shim_driver(13000, 1)
    shim.gwq_shim_integrated(0)


@pytest.fixture
def cuda_device(cuda_library, monkeypatch):
    """As if this machine had a GPU, with the CUDA library's host build as its library."""
    from gwq_export.native import cuda

    monkeypatch.setenv("GWQ_CUDA_LIBRARY", str(cuda_library))
    cuda.cuda_lib.cache_clear()
    yield
    cuda.cuda_lib.cache_clear()


@pytest.fixture(scope="session")
def libraries(request, tmp_path_factory):
    """name -> library; the SIMDe one runs the AVX-512 code on any x86 CPU."""
    from gwq_export.format.types import ffi

    opened = {}

    def library(isa):
        if isa.endswith("-simde") and not os.path.exists("/usr/include/simde/x86/avx512.h"):
            pytest.skip("SIMDe is not installed (Debian: libsimde-dev)")
        key = isa if isa == "cuda" else isa.endswith("-simde")
        if key not in opened:
            if key == "cuda":
                path = request.getfixturevalue("cuda_library")
            else:
                path = simde_library(tmp_path_factory) if key else LIBRARY
            opened[key] = ffi.dlopen(str(path))
        return opened[key]

    return library


@pytest.fixture(scope="session")
def select(libraries):
    """Choose an instruction set and return its library; skips when this machine lacks it."""

    from gwq_export.native.library import isas

    def choose(isa):
        lib = libraries(isa)
        name = isa.removesuffix("-simde")
        if name not in isas(lib):
            pytest.skip(f"this machine has no {name}")
        assert lib.gwq_isa_select(name.encode()) == 0
        return lib

    return choose


@pytest.fixture(scope="module", params=ISAS)
def lib(request, select):
    select(request.param)

    class Selected:
        """Selects before each call: another test may have chosen another instruction set."""

        def __getattr__(self, name):
            return getattr(select(request.param), name)

    return Selected()


@pytest.fixture(scope="module")
def pool(lib):
    from gwq_export.format.types import ffi

    pools = {}

    def get(threads):
        if threads not in pools:
            out = ffi.new("gwq_pool **")
            assert lib.gwq_pool_new(threads, out) == 0
            pools[threads] = out[0]
        return pools[threads]

    yield get
    for p in pools.values():
        lib.gwq_pool_free(p)
