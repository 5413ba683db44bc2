# Sourced by tools/demo, tools/test and studies/run: a virtual environment in .venv with everything
# they need. Re-runnable; when nothing changed it takes about a second. GWQ_TORCH_INDEX names a
# package index for torch, such as PyTorch's CPU index.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if [ ! -x .venv/bin/python ]; then
    "${PYTHON:-python3}" -m venv .venv || {
        echo "cannot make a virtual environment: apt-get install python3-venv" >&2
        exit 2
    }
fi
py=.venv/bin/python
stamp=.venv/gwq-setup
wanted=$(cat pyproject.toml tools/setup.sh native/backend.py | sha256sum)
if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
    echo "installing into .venv (first run: a few minutes)" >&2
    # A plain `torch` requirement would pull gigabytes of CUDA where a CPU build will do.
    if ! $py -c "import torch" 2>/dev/null; then
        $py -m pip install -q ${GWQ_TORCH_INDEX:+--index-url "$GWQ_TORCH_INDEX"} torch==2.13.0
    fi
    $py -m pip install -q "setuptools>=77" "ninja>=1.11" "cffi>=1.15"
    $py -m pip install -q --no-build-isolation -e ".[export,test]"
    echo "$wanted" > "$stamp"
fi
$py native/build.py 2>/dev/null || $py native/build.py
export PATH="$PWD/.venv/bin:$PATH"
