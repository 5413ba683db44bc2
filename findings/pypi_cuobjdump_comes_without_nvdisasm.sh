#!/usr/bin/env bash
# 2026-11-30
#
# Expected: PyPI's nvidia-cuda-cuobjdump brings what cuobjdump needs, so that `cuobjdump -sass` prints
# the machine code of an object file once the package is installed.
#
# Instead: cuobjdump leaves the disassembling to a second program, nvdisasm, which the package neither
# contains nor requires. `-sass` prints the header of the first kernel, says that nvdisasm is missing,
# and exits with 1; lists of a file's contents work. With the package nvidia-cuda-nvdisasm it works,
# if that program lies beside cuobjdump, in the PATH, or in the folder that NVDISASM_PATH names.
#
# Why it matters: a check of what the compiler made of a kernel passes where NVIDIA's toolkit is
# installed as a whole, and fails where its parts come from PyPI: nvdisasm has to be named as well.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
pip=("$work/venv/bin/pip" --quiet --disable-pip-version-check install)
version=13.5.37
"${pip[@]}" --target "$work/cuda" nvidia-cuda-nvcc==$version nvidia-cuda-cuobjdump==$version
bin=$(dirname "$(find "$work/cuda" -name cuobjdump -type f)")
"$bin/cuobjdump" --version | tail -n 2
echo "requires: $(grep -h ^Requires-Dist "$work"/cuda/nvidia_cuda_cuobjdump*/METADATA || echo nothing)"

cat > "$work/x.cu" << 'CUDA'
__global__ void twice(float *x) { x[threadIdx.x] *= 2; }
CUDA
"$bin/nvcc" -arch=sm_80 -cubin -o "$work/x.cubin" "$work/x.cu"
instructions() { # of the object file, with $1 before the PATH: their number and the exit status
    local status=0
    PATH=$1:/usr/bin:/bin "$bin/cuobjdump" -sass "$work/x.cubin" > "$work/out" 2> "$work/err" ||
        status=$?
    echo "$(grep -c FADD "$work/out" || true) additions, exit status $status"
    sed 's/^/    /' "$work/err" >&2
}
alone=$(instructions "$bin")
echo "with nvidia-cuda-cuobjdump alone: $alone"
"${pip[@]}" --upgrade --target "$work/more" nvidia-cuda-nvdisasm==$version
both=$(instructions "$(dirname "$(find "$work/more" -name nvdisasm -type f)")")
echo "with nvidia-cuda-nvdisasm in the PATH: $both"

if [[ $alone == "0 additions, exit status 1" && $both == "1 additions, exit status 0" ]]; then
    echo "as described"
else
    echo "NO LONGER as described"
    exit 1
fi
