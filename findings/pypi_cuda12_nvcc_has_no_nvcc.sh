#!/usr/bin/env bash
# 2026-11-30
#
# Expected: PyPI's nvidia-cuda-nvcc-cu12, by its name and summary the compiler of CUDA 12, brings the
# program nvcc, as nvidia-cuda-nvcc does for CUDA 13.
#
# Instead: its one program is ptxas, the assembler that turns PTX into machine code. The front end
# that makes PTX of CUDA C++ (nvcc, and cicc) is not in it, nor in anything that it requires. The
# package without a suffix, of CUDA 13, has nvcc; cicc is in nvidia-nvvm, which it requires.
#
# Why it matters: a build that takes its compiler from PyPI, as one without root or in CI would,
# can be had for CUDA 13 alone. A machine whose driver knows only CUDA 12 needs NVIDIA's own
# installer, or libraries whose kernels are compiled at run time (nvrtc).
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
pip=("$work/venv/bin/pip" --quiet --disable-pip-version-check)
"${pip[@]}" install --target "$work/12" nvidia-cuda-nvcc-cu12==12.9.86
"${pip[@]}" install --target "$work/13" nvidia-cuda-nvcc==13.5.37

programs() { # names of the executable files of a folder
    find "$1" -type f -perm -u+x \( -path '*/bin/*' -o -path '*/nvvm/*' \) ! -name '*.so*' \
        ! -name '*.h' -printf '%f\n' | sort -u | tr '\n' ' '
}
for release in 12 13; do
    echo "CUDA $release: $(ls "$work/$release" | grep dist-info | tr '\n' ' ')"
    echo "    programs: $(programs "$work/$release")"
done
cat > "$work/x.cu" << 'CUDA'
__global__ void twice(float *x) { x[threadIdx.x] *= 2; }
CUDA
nvcc=$(find "$work/13" -name nvcc -type f | head -n 1)
"$nvcc" --version | grep release
"$nvcc" -ptx -o "$work/x.ptx" "$work/x.cu" && compiled=yes || compiled=no
echo "CUDA 13's makes PTX: $compiled"

if [[ " $(programs "$work/12")" == *" ptxas "* && -z "$(find "$work/12" -name nvcc)" &&
    -z "$(find "$work/12" -name cicc)" && $compiled == yes ]]; then
    echo "as described"
else
    echo "NO LONGER as described"
    exit 1
fi
