"""Hooks for setuptools: the wheel carries the library and its declarations, the sdist the C
sources.
"""

import importlib.util
import os
import shutil
import sys
from pathlib import Path
from types import ModuleType

from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

NATIVE = Path(__file__).resolve().parent
ROOT = NATIVE.parent
SOURCES = (".c", ".cpp", ".h", ".cu", ".py")


def _module(name: str) -> ModuleType:
    """native/NAME.py, which a build in an environment of its own cannot import."""
    spec = importlib.util.spec_from_file_location(f"gwq_native_{name}", NATIVE / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def _build_cuda(folder: Path) -> None:
    """Put libgwq_cuda.so beside the library. Raises SystemExit without nvcc."""
    sys.path.insert(0, str(ROOT))
    try:
        from native.build_cuda import build
    finally:
        sys.path.pop(0)
    build(folder)


class BuildPy(build_py):
    """Compiles into the wheel's package folder; an editable install, into the source tree.

    GWQ_CUDA=1 in the environment: libgwq_cuda.so too, which takes nvcc.
    """

    def run(self) -> None:
        native = _module("build")
        in_wheel = Path(self.build_lib, native.PACKAGE.relative_to(ROOT))
        if not self.editable_mode:  # modules and libraries of a former build would come along
            shutil.rmtree(in_wheel.parent, ignore_errors=True)
        super().run()
        folder = native.PACKAGE if self.editable_mode else in_wheel
        native.build(folder)
        if os.environ.get("GWQ_CUDA") == "1":
            _build_cuda(folder)

    def get_source_files(self) -> list[str]:
        """What the sdist contains, native/ with its folders included."""
        module = _module("build")
        names = ["include", "cuda", module.PROGRAM_FOLDER, *module.FOLDERS]
        folders = [NATIVE, *(NATIVE / name for name in names)]
        files = [p for folder in folders for p in folder.iterdir() if p.suffix in SOURCES]
        return super().get_source_files() + [str(p.relative_to(ROOT)) for p in sorted(files)]


class BdistWheel(bdist_wheel):
    """One wheel for every Python 3 of a platform: the library knows nothing of the interpreter.

    The platform is read off the libraries, so `CC=aarch64-linux-gnu-gcc` makes a wheel for aarch64.
    The same sources give the same bytes wherever they lie and whenever that is; SOURCE_DATE_EPOCH
    in the environment is the time that members bear.
    """

    def initialize_options(self) -> None:
        super().initialize_options()
        self.distribution.has_ext_modules = lambda: True  # files go to platlib

    def get_tag(self) -> tuple[str, str, str]:
        native = Path(self.get_finalized_command("build").build_lib, "gwq_export", "native")
        libraries = sorted(native.glob("*.so"))  # none before an editable install
        return "py3", "none", _module("wheel").platform_tag(libraries, super().get_tag()[2])

    def run(self) -> None:
        super().run()
        wheel = _module("wheel")
        seconds = int(os.environ.get("SOURCE_DATE_EPOCH", wheel.EARLIEST))
        for _, _, path in self.distribution.dist_files:
            if path.endswith(".whl"):
                wheel.normalize(Path(path), seconds)
