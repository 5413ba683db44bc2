"""Who may import whom: the data flow of the design, checked on the source text."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "gwq_export"
ALLOWED = {  # module -> modules of the package it may import
    "__init__": {"pipeline", "generate", "container"},
    "format": set(),
    "blocks": set(),
    "arch": {"blocks"},
    "arrange": set(),
    "rope": set(),
    "config": {"arch", "rope"},
    "side_table": {"format"},
    "tiles": {"format", "side_table"},
    "bridge": set(),
    "header": {"format"},
    "container": {"bridge", "format", "header", "side_table", "tiles"},
    "native": {"format"},
    "writer": {"bridge", "container", "format", "header"},
    "pretokenizer": set(),
    "tokenizer": {"container", "pretokenizer"},
    "vocabulary": {"pretokenizer", "tokenizer"},
    "source": {"arch"},
    "metadata": {"format"},
    "workdir": set(),
    "parallel": {"native"},
    "totals": {"parallel"},
    "unfused": set(),
    "block_model": {"unfused"},
    "calibrate": {"block_model", "parallel", "totals", "workdir"},
    "encoder": {"format", "native", "parallel"},
    "saliency": {"format"},
    "deltas": {"encoder", "format", "parallel", "saliency"},
    "quantize": {"deltas", "saliency", "encoder", "format", "side_table", "tiles"},
    "imatrix": {"arch", "calibrate", "format", "totals", "writer"},
    "plan": {"arch", "arrange", "container", "format", "quantize", "saliency"},
    "allocate": {"encoder", "parallel", "format", "quantize", "saliency"},
    "estimate": {"plan"},
    "survey": {"allocate", "calibrate", "encoder", "header", "native", "plan", "saliency", "format", "workdir"},
    "norms": {"block_model", "parallel"},
    "produce": {"calibrate", "container", "encoder", "norms", "plan", "quantize", "writer"},
    "texts": set(),
    "verify": {"bench", "block_model", "calibrate", "evaluate", "generate", "predict"},
    "windows": {"calibrate", "verify"},
    "charts": set(),
    "facts": {"container", "side_table"},
    "report": {"charts", "facts"},
    "card": set(),
    "outputs": {"card", "container", "facts", "plan", "report", "texts", "verify"},
    "checkpoint": {"arch", "arrange", "format", "header", "stock"},
    "base": {"checkpoint", "config", "container", "source", "stock"},
    "hf_files": {"arch", "tokenizer"},
    "restore": {"checkpoint", "config", "format", "header", "hf_files"},
    "pipeline": {
        "base",
        "norms",
        "outputs",
        "windows",
        "bridge",
        "imatrix",
        "plan",
        "survey",
        "arch",
        "source",
        "metadata",
        "calibrate",
        "encoder",
        "native",
        "saliency",
        "quantize",
        "allocate",
        "writer",
        "workdir",
        "parallel",
        "estimate",
        "produce",
        "totals",
        "vocabulary",
        "tokenizer",
        "format",
    },
    "experts": {"native"},
    "model": {"config", "container", "experts", "format", "native", "rope"},
    "generate": {"model", "tokenizer"},
    "chat": set(),
    "stock": {"generate", "container", "format", "header"},
    "predict": {"stock", "model"},
    "evaluate": {"predict"},
    "tasks": {"evaluate", "predict"},
    "harness": {"tasks", "predict", "stock", "generate"},
    "bench/__init__": set(),
    "bench/roof": {"native"},
    "bench/cases": {"native", "format", "side_table"},
    "bench/kernels": {"bench/__init__", "bench/cases", "bench/roof", "native"},
    "bench/worker": {"generate", "model", "native"},
    "bench/contender": {"container", "format", "header", "stock"},
    "bench/models": {"bench/__init__", "bench/contender", "bench/roof", "container", "native"},
    "bench/tables": set(),
    "console": set(),
    "cli": {"console", "commands"},
    "commands/__init__": set(),
    "commands/export": {"console", "pipeline"},
    "commands/run": {"console", "generate", "chat"},
    "commands/evaluate": {"console", "stock", "predict", "evaluate", "tasks"},
    "commands/bench": {"console", "bench/cases", "bench/kernels", "bench/models", "bench/tables"},
    "commands/info": {"console", "container", "facts", "report", "restore", "texts"},
}
EXPORT_ONLY = {"torch", "transformers", "safetensors", "huggingface_hub", "gguf"}


def imports(path):
    """(module names, at top level only) of every import statement."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            folder = PACKAGE.parent / (node.module or "").replace(".", "/")
            submodules = [a.name for a in node.names if (folder / f"{a.name}.py").exists()]
            names = [f"{node.module}.{name}" for name in submodules]
            if len(submodules) < len(node.names) and node.module != "gwq_export":
                names.append(f"{node.module}.__init__" if folder.is_dir() else node.module or "")
        for name in names:
            yield name, node in tree.body


def test_every_module_has_a_place():
    assert {str(p.relative_to(PACKAGE).with_suffix("")) for p in PACKAGE.rglob("*.py")} == set(ALLOWED)


@pytest.mark.parametrize("module", ALLOWED)
def test_imports_follow_the_flow(module):
    for name, top_level in imports(PACKAGE / f"{module}.py"):
        if name.startswith("gwq_export."):
            _, first, *rest = name.split(".")
            assert first in ALLOWED[module] or "/".join([first, *rest]) in ALLOWED[module], f"{module} imports {name}"
        if name.split(".")[0] in EXPORT_ONLY and top_level:
            assert module in ("block_model", "calibrate", "norms", "parallel", "unfused"), f"{module} imports {name} when it is imported"


@pytest.mark.parametrize("module", ["allocate", "deltas", "encoder", "quantize", "saliency"])
def test_matrix_products_are_those_of_parallel(module):
    """numpy's own depend, by a bit, on the number of threads."""
    assert not any(isinstance(node, ast.MatMult) for node in ast.walk(ast.parse((PACKAGE / f"{module}.py").read_text())))


RUNTIME = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Missing())
import gwq_export
from gwq_export import cli, evaluate
model = gwq_export.load({path!r})
assert len(model.generate("The city", n=8)) > 4
assert evaluate.evaluate(model, open({text!r}).read()[:4000], 256)["ppl"] > 1
assert cli.main("info", [{path!r}, "--check"]) == 0
assert cli.main("export", ["x", "--out", "y.gguf"]) == 2
assert cli.main("eval", [{path!r}, "--text", {text!r}, "--against", {folder!r}]) == 2
"""


def test_runtime_without_torch_and_transformers(exported):
    from conftest import DATA, REFERENCE

    path, _ = exported(type="gwq4")
    code = RUNTIME.format(blocked=EXPORT_ONLY - {"huggingface_hub"}, path=str(path), text=str(DATA / "eval.txt"), folder=str(REFERENCE))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count('pip install "gwq-export[export]"') == 2
