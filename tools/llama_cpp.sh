# Sourced by tools/build_ggml and tools/build_llama_quantize: llama.cpp's source, as vendored (MIT)
# in the sdist of llama_cpp_python on PyPI, and where what is built of it stays, outside the
# repository.
version=0.3.36 # the newest where an index no longer has it
cache=${XDG_CACHE_HOME:-$HOME/.cache}/gwq-export

# fetch_llama_cpp FOLDER [PART]: llama.cpp, or a part of it, in FOLDER; prints the sdist's name.
fetch_llama_cpp() {
    local sdist
    download() {
        "${PYTHON:-python3}" -m pip download -q --no-binary llama_cpp_python --no-deps \
            -d "$work" "$1" >&2
    }
    download "llama_cpp_python==$version" || download llama_cpp_python
    sdist=$(echo "$work"/llama_cpp_python-*.tar.gz)
    tar -xzf "$sdist" -C "$1" --strip-components=3 --wildcards "*/vendor/llama.cpp${2:+/$2}"
    basename "$sdist" .tar.gz
}
