# `make test` sets everything up and runs every test; see CONTRIBUTING.md for the other targets.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := test

VENV := .venv
PYTHON := $(VENV)/bin/python
JOBS := $(shell nproc 2>/dev/null || echo 2)
CMAKE := $(VENV)/bin/cmake
NATIVE := build/native
# Where there is no Metal, its backend is tested on a simulated device.
METALSIM := $(if $(filter Darwin,$(shell uname -s)),OFF,ON)

.PHONY: test setup install cpp-tests python-tests metal-tests lint analyse format sanitize fuzz coverage goldens bench compare clean

test: lint cpp-tests python-tests metal-tests analyse

# --- tools ------------------------------------------------------------------------------------------------------

setup: $(VENV)/.ready
$(VENV)/.ready: tools/requirements-dev.txt tools/bootstrap.sh
	bash tools/bootstrap.sh $(VENV)
	$(PYTHON) -m pip install --quiet --disable-pip-version-check -r tools/requirements-dev.txt
	touch $@

# The package, built as a user would build it.
install: setup
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --no-build-isolation '.[test]'

# --- tests ------------------------------------------------------------------------------------------------------

$(NATIVE)/CMakeCache.txt: | setup
	$(CMAKE) -S . -B $(NATIVE) -G Ninja -DMETALLIC_TESTS=ON -DMETALLIC_BENCH=ON -DMETALLIC_METALSIM=$(METALSIM) \
	    -DPython_EXECUTABLE=$(abspath $(PYTHON)) -DCMAKE_MAKE_PROGRAM=$(abspath $(VENV))/bin/ninja

cpp-tests: setup $(NATIVE)/CMakeCache.txt
	$(CMAKE) --build $(NATIVE) -j $(JOBS)
	$(VENV)/bin/ctest --test-dir $(NATIVE) -j $(JOBS) --output-on-failure --no-tests=error

python-tests: install
	$(PYTHON) -m pytest

# Once more on the Metal backend, what does not depend on the device. On a Mac the installed package has it.
metal-tests: cpp-tests install
	PYTHONPATH=$(if $(filter ON,$(METALSIM)),$(abspath $(NATIVE))/site) $(PYTHON) -m pytest --device=metal tests/python

lint: setup $(NATIVE)/CMakeCache.txt
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	git ls-files '*.h' '*.cpp' '*.mm' '*.metal' | xargs $(VENV)/bin/clang-format --dry-run --Werror

# mypy needs the built module's types, clang-tidy the compile commands.
analyse: install $(NATIVE)/CMakeCache.txt
	$(VENV)/bin/mypy
	git ls-files 'cpp/*.cpp' ':!cpp/bindings' ':!cpp/backend/cpu/isa' | \
	    xargs -P $(JOBS) -n 4 $(VENV)/bin/clang-tidy -p $(NATIVE) --quiet

format: setup
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .
	git ls-files '*.h' '*.cpp' '*.mm' '*.metal' | xargs $(VENV)/bin/clang-format -i

# $(call sanitized,KIND): a build of everything under -fsanitize=KIND, in build/KIND; with clang, whose runtimes Python and
# Objective-C++ take too.
SANITIZED_CXX := $(if $(filter ON,$(METALSIM)),-DCMAKE_C_COMPILER=clang-19 -DCMAKE_CXX_COMPILER=clang++-19)
sanitized = $(CMAKE) -S . -B build/$(1) -G Ninja -DMETALLIC_TESTS=ON -DMETALLIC_METALSIM=$(METALSIM) $(SANITIZED_CXX) \
	-DPython_EXECUTABLE=$(abspath $(PYTHON)) -DCMAKE_MAKE_PROGRAM=$(abspath $(VENV))/bin/ninja -DMETALLIC_SANITIZE=$(1) && \
	$(CMAKE) --build build/$(1) -j $(JOBS)

# $(call stressed,KIND,RUNTIME,SECONDS): conversations under memory pressure on both backends, in such a build. Python is
# not built with the runtime, which has to be there first; and it leaks.
STRESSES := "cpu --eviction save" "cpu --eviction recompute" \
	"metal --conversations 32 --context 128 --longest 70 --drawn 4 --faults 6"
stressed = for run in $(STRESSES); do \
	    LD_PRELOAD=$$(clang-19 -print-file-name=libclang_rt.$(2)-$$(uname -m).so) ASAN_OPTIONS=$$ASAN_OPTIONS:detect_leaks=0 \
	    PYTHONPATH=build/$(1)/site $(PYTHON) tests/python/stress_memory.py --seconds $(3) --device $$run; \
	done
STRESS_SECONDS := 60

SYMBOLIZER = external_symbolizer_path=$(shell command -v llvm-symbolizer-19)
# metalsim's checks know the real stack, not the sanitizer's.
sanitize fuzz: export ASAN_OPTIONS = $(SYMBOLIZER):detect_stack_use_after_return=0
sanitize fuzz: export LSAN_OPTIONS = suppressions=$(abspath tests/metalsim/lsan.supp)
sanitize: export TSAN_OPTIONS = $(SYMBOLIZER):suppressions=$(abspath tests/metalsim/tsan.supp)

sanitize: install
	bash tools/bootstrap.sh $(VENV) sanitizers
	$(call sanitized,address$(comma)undefined)
	$(VENV)/bin/ctest --test-dir build/address,undefined -j $(JOBS) --output-on-failure --no-tests=error
	$(if $(filter ON,$(METALSIM)),$(call stressed,address$(comma)undefined,asan,$(STRESS_SECONDS)))
	$(call sanitized,thread)
	$(VENV)/bin/ctest --test-dir build/thread -j $(JOBS) --output-on-failure --no-tests=error
	$(if $(filter ON,$(METALSIM)),$(call stressed,thread,tsan,$(STRESS_SECONDS)))

fuzz: setup
	bash tools/bootstrap.sh $(VENV) sanitizers
	$(call sanitized,address$(comma)undefined)
	build/address,undefined/gguf_fuzz --count 200000 --seed 1

comma := ,

# --- measurements -----------------------------------------------------------------------------------------------

coverage: setup
	$(CMAKE) -S . -B build/coverage -G Ninja -DMETALLIC_PYTHON=OFF -DMETALLIC_TESTS=ON -DCMAKE_BUILD_TYPE=Debug \
	    -DCMAKE_CXX_FLAGS='-O1 --coverage -fprofile-update=atomic' -DCMAKE_MAKE_PROGRAM=$(abspath $(VENV))/bin/ninja
	$(CMAKE) --build build/coverage -j $(JOBS)
	$(VENV)/bin/ctest --test-dir build/coverage -j $(JOBS) --output-on-failure --no-tests=error
	$(VENV)/bin/gcovr --root cpp build/coverage --txt --print-summary
	$(MAKE) install
	$(PYTHON) -m pytest --cov=metallic_native --cov-report=term

bench: install $(NATIVE)/CMakeCache.txt
	$(CMAKE) --build $(NATIVE) -j $(JOBS)
	mkdir -p build/bench
	for binary in $(NATIVE)/*_bench; do \
	    $$binary --benchmark_out=build/bench/$$(basename $$binary).json --benchmark_out_format=json; \
	done
	$(PYTHON) bench/workloads.py --json build/bench/workloads.json $(if $(BASELINE),--compare $(BASELINE))

compare: install
	$(PYTHON) -m pip install --quiet '.[bench]'
	$(PYTHON) bench/compare.py --shapes 0.5b 1b 3b --types q4_k_m q8_0 q4_0 f16 --json build/bench/compare.json

goldens: install
	$(PYTHON) -m pip install --quiet '.[goldens]'
	METALLIC_GOLDENS=$(abspath $(PYTHON)) $(PYTHON) -m pytest -m goldens

clean:
	rm -rf build dist $(VENV)
