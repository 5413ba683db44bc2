"""Hooks for setuptools: the wheel carries the compiled library and its headers, the sdist the C
sources.
"""

import importlib.util
from pathlib import Path

from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

NATIVE = Path(__file__).resolve().parent


def _build_module():
    spec = importlib.util.spec_from_file_location("gwq_native_build", NATIVE / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class BuildPy(build_py):
    """Compiles into the wheel's package folder, or into the source tree for an editable install."""

    def run(self):
        super().run()
        native = _build_module()
        native.build(
            native.PACKAGE if self.editable_mode else Path(self.build_lib, "gwq_export", "native")
        )

    def get_source_files(self):
        native = [p for p in NATIVE.iterdir() if p.suffix in (".c", ".h", ".cu", ".py")]
        return super().get_source_files() + [
            str(p.relative_to(NATIVE.parent)) for p in sorted(native)
        ]


class BdistWheel(bdist_wheel):
    """One wheel for every Python 3 of a platform: the library knows nothing of the interpreter."""

    def initialize_options(self):
        super().initialize_options()
        self.distribution.has_ext_modules = lambda: True  # files go to platlib

    def get_tag(self):
        return "py3", "none", super().get_tag()[2]
