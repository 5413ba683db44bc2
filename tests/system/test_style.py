"""Style that no linter looks at: type hints of public functions, lengths of native lines."""

import ast

import pytest

from tests.support.paths import ROOT

PACKAGE = ROOT / "gwq_export"
FOLDERS = [".", *sorted(p.parent.name for p in PACKAGE.glob("*/__init__.py"))]
CALLED_BY_EVERYBODY = {"__init__", "__call__"}  # methods that are public under a private name


def public(name):
    return not name.startswith("_") or name in CALLED_BY_EVERYBODY


def functions(tree):
    """(dotted name, node, whether it is a method with self or cls) of what a module offers."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and public(node.name):
            yield node.name, node, False
        elif isinstance(node, ast.ClassDef) and public(node.name):
            for method in node.body:
                if isinstance(method, ast.FunctionDef) and public(method.name):
                    static = any(
                        isinstance(d, ast.Name) and d.id == "staticmethod"
                        for d in method.decorator_list
                    )
                    yield f"{node.name}.{method.name}", method, not static


def missing(node, bound):
    """Names of the parameters without a hint; "return" where that has none."""
    arguments = node.args
    parameters = [*arguments.posonlyargs, *arguments.args]
    parameters = parameters[1:] if bound else parameters
    parameters += arguments.kwonlyargs
    parameters += [a for a in (arguments.vararg, arguments.kwarg) if a is not None]
    names = [p.arg for p in parameters if p.annotation is None]
    if node.returns is None and node.name != "__init__":
        names.append("return")
    return names


@pytest.mark.parametrize("folder", FOLDERS)
def test_public_functions_have_type_hints(folder):
    found = {
        f"{path.name}:{node.lineno} {name}": names
        for path in sorted((PACKAGE / folder).glob("*.py"))
        for name, node, bound in functions(ast.parse(path.read_text()))
        if (names := missing(node, bound))
    }
    assert not found


def test_the_check_sees_what_is_missing():
    source = """
def f(a: int, b, *c, d: int = 1, **e) -> None: ...
def g(a: int): ...
def _h(a): ...
class C:
    def __init__(self, a): ...
    def m(self, a: int): ...
    @staticmethod
    def s(a) -> int: ...
class _D:
    def m(self): ...
"""
    found = {name: missing(node, bound) for name, node, bound in functions(ast.parse(source))}
    assert found == {
        "f": ["b", "c", "e"],
        "g": ["return"],
        "C.__init__": ["a"],
        "C.m": ["return"],
        "C.s": ["a"],
    }


def test_lines_of_native_code_have_at_most_100_columns():
    suffixes = (".c", ".h", ".cu", ".cpp")
    paths = [p for p in sorted((ROOT / "native").rglob("*")) if p.suffix in suffixes]
    assert len(paths) > 50
    long = [
        f"{path.relative_to(ROOT)}:{i}"
        for path in paths
        for i, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if len(line) > 100
    ]
    assert not long
