"""Who may include whom in native/, and who may call whom: no circle."""

import importlib.util
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from native.build_fuzz import TARGETS, fuzz_sources

NATIVE = Path(__file__).parents[2] / "native"
MAY_INCLUDE = {  # folder -> folders whose headers its files may include
    "include": {"include"},
    "cpu": {"include", "cpu"},
    "x86": {"include", "cpu", "x86"},
    "arm": {"include", "cpu", "arm"},
    "cuda": {"include", "cuda"},  # a library of its own (native/build_cuda.py)
    "bench": {"include", "bench"},  # a program, which calls what others may call
    "fuzz": {"include", "cpu", "bench", "fuzz"},  # targets, which call what they test
}
CALLS = [  # a file calls only files of earlier lines
    {"check", "maps"},
    {
        "threads",
        "top",
        "attend_scalar",
        "encode_scalar",
        "gemm_scalar",
        "scalar_ggml",
        "scalar_ops",
    },
    {"scalar"},
    {
        "attend_avx2",
        "attend_avx512",
        "encode_avx2",
        "encode_avx512",
        "gemm_avx2",
        "gemm_avx512",
        "avx2_ggml",
        "avx2_ops",
        "avx2_functions",
    },
    {
        "features",
        "attend_neon",
        "encode_neon",
        "gemm_neon",
        "neon_ggml",
        "neon_ops",
        "neon_attention",
        "neon_functions",
    },
    {"avx2", "neon"},
    {"avx512_codes", "avx512_ggml", "avx512_ops"},
    {"avxvnni", "avx512", "dotprod", "i8mm"},
    {"avx512vbmi"},
    {"dispatch"},
    {"matrix", "massive", "ops", "kv_cache", "recurrent", "prompt_attention", "encode", "gemm"},
    {"attention", "matmul"},
    {"program"},
    {"say", "sha256", "json", "files"},
    {"stats", "sensors", "limits", "options", "save", "data"},
    {"device", "pages", "record", "cases"},
    {"roof", "link_ops"},
    {"link", "document"},
    {"pass"},
    {"plan", "engine"},
    {"suite", "kernels"},
    {"main"},
]


def build_module():
    spec = importlib.util.spec_from_file_location("native_build", NATIVE / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("folder", MAY_INCLUDE)
def test_no_include_goes_upward(folder):
    for path in sorted((NATIVE / folder).iterdir()):
        for name in re.findall(r'#include "(.+)"', path.read_text()):
            places = [root / name for root in (path.parent, NATIVE / "include", NATIVE)]
            found = next(p for p in places if p.exists())
            assert found.parent.name in MAY_INCLUDE[folder], f"{path.name} includes {name}"


def test_every_file_is_compiled_and_has_a_place():
    module = build_module()
    rows = module.FOLDERS
    built = {f"{folder}/{name}" for folder, (files, _) in rows.items() for name in files}
    built |= set(module.program_sources())
    assert {Path(name).stem for name in built} == set.union(*CALLS)
    for target in TARGETS:
        built |= {*fuzz_sources(target, replay=True)}
    assert built == {str(p.relative_to(NATIVE)) for p in NATIVE.glob("*/*.c")}
    assert {*rows, "include", "cuda", module.PROGRAM_FOLDER, "fuzz"} == set(MAY_INCLUDE)


def symbols(path, kind):
    command = ["nm", f"--{kind}-only", "--extern-only", path]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return {line.split()[-1] for line in done.stdout.splitlines()}


def test_no_call_goes_upward(tmp_path):
    module = build_module()
    module.build(tmp_path)
    module.build_program(tmp_path)
    target = module.machine(shutil.which("cc"))
    folder = NATIVE / "build" / target
    sources = [*module.sources(target), *module.program_sources()]
    objects = [folder / Path(s).with_suffix(".o") for s in sources]
    level = {name: i for i, names in enumerate(CALLS) for name in names}
    owner = {symbol: path.stem for path in objects for symbol in symbols(path, "defined")}
    for path in objects:
        for symbol in symbols(path, "undefined") & set(owner):
            below = level[owner[symbol]] < level[path.stem]
            assert below, f"{path.stem} calls {symbol} of {owner[symbol]}"
