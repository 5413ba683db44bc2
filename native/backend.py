"""Hooks for setuptools: the wheel carries the library and its headers, the sdist the C sources."""

import importlib.util
from pathlib import Path
from types import ModuleType

from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

NATIVE = Path(__file__).resolve().parent
ROOT = NATIVE.parent
SOURCES = (".c", ".h", ".cu", ".py")


def _build_module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gwq_native_build", NATIVE / "build.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class BuildPy(build_py):
    """Compiles into the wheel's package folder; an editable install, into the source tree."""

    def run(self) -> None:
        super().run()
        native = _build_module()
        in_wheel = Path(self.build_lib, native.PACKAGE.relative_to(ROOT))
        native.build(native.PACKAGE if self.editable_mode else in_wheel)

    def get_source_files(self) -> list[str]:
        """What the sdist contains, native/ with its folders included."""
        folders = [NATIVE, NATIVE / "include", *(NATIVE / name for name in _build_module().FOLDERS)]
        files = [p for folder in folders for p in folder.iterdir() if p.suffix in SOURCES]
        return super().get_source_files() + [str(p.relative_to(ROOT)) for p in sorted(files)]


class BdistWheel(bdist_wheel):
    """One wheel for every Python 3 of a platform: the library knows nothing of the interpreter."""

    def initialize_options(self) -> None:
        super().initialize_options()
        self.distribution.has_ext_modules = lambda: True  # files go to platlib

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]
