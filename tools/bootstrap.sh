#!/usr/bin/env bash
# bootstrap.sh VENV [sanitizers]: makes a virtual environment, and installs what a bare Debian lacks for that and for the
# tests: python3-venv, a C++ compiler, GoogleTest, Google Benchmark; for the simulated Metal device clang, GCC's
# Objective-C runtime and the blocks runtime; and if asked for, the runtimes of clang's sanitizers. Asks for root only when
# something is missing.
set -euo pipefail
venv=$1
sanitizers=${2:-}

missing=()
has_header() { echo "#include <$1>" | c++ -std=c++20 -E -x c++ - >/dev/null 2>&1; }
python3 -c 'import venv, ensurepip' >/dev/null 2>&1 || missing+=(python3 python3-venv)
python3 -c 'import sysconfig, os, sys; sys.exit(not os.path.exists(sysconfig.get_paths()["include"] + "/Python.h"))' \
    >/dev/null 2>&1 || missing+=(python3-dev)
command -v c++ >/dev/null || missing+=(g++)
command -v git >/dev/null || missing+=(git)
{ command -v c++ >/dev/null && has_header gtest/gtest.h; } || missing+=(libgtest-dev)
{ command -v c++ >/dev/null && has_header benchmark/benchmark.h; } || missing+=(libbenchmark-dev)
if [ "$(uname -s)" = Linux ]; then
    command -v clang++-19 >/dev/null || missing+=(clang-19)
    [ -e "$(gcc -print-file-name=include 2>/dev/null)/objc/objc.h" ] || missing+=(gobjc)
    [ -e "$(gcc -print-file-name=libBlocksRuntime.so 2>/dev/null)" ] || missing+=(libblocksruntime-dev)
    if [ "$sanitizers" ]; then
        [ -e "$(clang-19 -print-file-name="libclang_rt.asan-$(uname -m).so" 2>/dev/null)" ] || missing+=(libclang-rt-19-dev)
        command -v llvm-symbolizer-19 >/dev/null || missing+=(llvm-19)
    fi
fi

if [ ${#missing[@]} -gt 0 ]; then
    if ! command -v apt-get >/dev/null; then
        echo "Please install: ${missing[*]} (their Debian names)" >&2
        exit 1
    fi
    as_root=()
    [ "$(id -u)" -eq 0 ] || as_root=(sudo)
    "${as_root[@]}" apt-get update -qq
    DEBIAN_FRONTEND=noninteractive "${as_root[@]}" apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi

[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
