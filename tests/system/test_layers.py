"""Who may import whom: the data flow of the design, checked on the source text."""

import ast
import subprocess
import sys

import pytest

from tests.support.paths import DATA, REFERENCE, ROOT

PACKAGE = ROOT / "gwq_export"
GROUND = ["cgroups", "errors", "files", "limits", "machine", "version"]  # for everybody
MAY_IMPORT = {
    "format": [],
    "arch": [],
    "tokenizer": [],
    "native": ["format"],
    "report": ["format"],
    "sensors": [],
    "runtime": ["format", "arch", "tokenizer", "native"],
    "prequantized": [],
    "hf": ["format", "arch", "tokenizer", "prequantized"],
    "compute": ["format", "native"],
    "calibration": ["compute"],
    "quantization": ["compute", "format", "native"],
    "evaluation": ["format", "tokenizer", "runtime"],
    "bench": ["format", "native", "runtime", "sensors"],
    "pipeline": [
        *("format", "arch", "tokenizer", "native", "report", "runtime", "hf"),
        *("compute", "calibration", "quantization", "evaluation"),
    ],
    "commands": [
        *("format", "report", "sensors", "runtime", "hf", "evaluation", "bench", "pipeline"),
    ],
}
TORCH_AT_THE_TOP = ["compute", "calibration", "quantization", "pipeline"]
EXPORT_ONLY = {"torch", "transformers", "safetensors", "huggingface_hub", "gguf"}
MODULES = sorted(p for folder in MAY_IMPORT for p in (PACKAGE / folder).glob("[!_]*.py"))


def imports(path):
    """(dotted name, whether it is imported with the module itself) of every import statement."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node in tree.body) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            folder = PACKAGE.parent / node.module.replace(".", "/")
            for alias in node.names:
                is_module = (folder / f"{alias.name}.py").exists()
                name = f"{node.module}.{alias.name}" if is_module else node.module
                yield name, node in tree.body


def order(folder):
    """The modules of a package in the order that its docstring lists them."""
    text = ast.get_docstring(ast.parse((PACKAGE / folder / "__init__.py").read_text()))
    return text.partition("listed above them:")[2].split()


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_every_module_has_a_place(folder):
    assert sorted(order(folder)) == sorted(p.stem for p in (PACKAGE / folder).glob("[!_]*.py"))


def test_there_are_no_other_packages():
    assert {p.parent.name for p in PACKAGE.glob("*/__init__.py")} == set(MAY_IMPORT)
    assert {p.stem for p in PACKAGE.glob("*.py")} == {*GROUND, "__init__", "cli", "harness"}


@pytest.mark.parametrize("path", MODULES, ids=lambda p: f"{p.parent.name}.{p.stem}")
def test_imports_follow_the_flow(path):
    folder = path.parent.name
    above = order(folder)[: order(folder).index(path.stem)]
    for name, with_module in imports(path):
        assert name != "gwq_export", "no module imports the package's face"
        top, *rest = name.split(".")
        if top == "gwq_export" and rest[0] == folder:
            assert rest[1] in above, f"{path.stem} imports {name}, which is not listed above it"
        elif top == "gwq_export":
            assert rest[0] in GROUND + MAY_IMPORT[folder], f"{folder} imports {name}"
        elif top in EXPORT_ONLY and with_module:
            assert top == "torch" and folder in TORCH_AT_THE_TOP, f"{name} at the top of {path}"


@pytest.mark.parametrize("path", [p for p in MODULES if p.parent.name == "quantization"])
def test_matrix_products_are_those_of_compute(path):
    """numpy's own depend, by a bit, on the number of threads."""
    assert not any(isinstance(n, ast.MatMult) for n in ast.walk(ast.parse(path.read_text())))


def top_names(path):
    """First names of all modules that a file imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield (node.module or ".").split(".")[0]


@pytest.mark.parametrize(
    "folder, strangers",
    [
        ("gwq_export", {"studies", "tests", "tools"}),
        ("studies", {"tests", "tools"}),
        ("tests", {"tools", "conftest"}),
    ],
)
def test_package_studies_and_tests_build_on_each_other(folder, strangers):
    for path in (ROOT / folder).rglob("*.py"):
        assert not strangers & set(top_names(path)), path


@pytest.mark.parametrize("folder", ["studies", "tests"])
def test_nobody_edits_the_module_path(folder):
    edits = [
        (path.name, node.lineno)
        for path in (ROOT / folder).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and ast.unparse(node) == "sys.path"
    ]
    assert not edits


RUNTIME = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Missing())
import gwq_export
from gwq_export import cli
from gwq_export.evaluation.perplexity import evaluate
model = gwq_export.load({path!r})
assert len(model.generate("The city", n=8)) > 4
assert evaluate(model, open({text!r}).read()[:4000], 256)["ppl"] > 1
assert cli.main("info", [{path!r}, "--check"]) == 0
assert cli.main("export", ["x", "--out", "y.gguf"]) == 2
assert cli.main("eval", [{path!r}, "--text", {text!r}, "--against", {folder!r}]) == 2
"""


def test_runtime_without_torch_and_transformers(exported):
    path, _ = exported(type="gwq4")
    code = RUNTIME.format(
        blocked=EXPORT_ONLY - {"huggingface_hub"},
        path=str(path),
        text=str(DATA / "eval.txt"),
        folder=str(REFERENCE),
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count('pip install "gwq-export[export]"') == 2
