# `make test` sets everything up and runs every test; see CONTRIBUTING.md for the other targets.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := test

VENV := .venv
PYTHON := $(VENV)/bin/python
JOBS := $(shell nproc 2>/dev/null || echo 2)
CMAKE := $(VENV)/bin/cmake
NATIVE := build/native

.PHONY: test setup install cpp-tests python-tests lint format sanitize coverage bench wheel goldens demo clean

test: lint cpp-tests python-tests

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
	$(CMAKE) -S . -B $(NATIVE) -G Ninja -DMETALLIC_PYTHON=OFF -DMETALLIC_TESTS=ON -DMETALLIC_BENCH=ON \
	    -DCMAKE_MAKE_PROGRAM=$(abspath $(VENV))/bin/ninja

cpp-tests: setup $(NATIVE)/CMakeCache.txt
	$(CMAKE) --build $(NATIVE) -j $(JOBS)
	$(VENV)/bin/ctest --test-dir $(NATIVE) -j $(JOBS) --output-on-failure --no-tests=error

python-tests: install
	$(PYTHON) -m pytest

lint: setup $(NATIVE)/CMakeCache.txt
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	git ls-files '*.h' '*.cpp' | xargs $(VENV)/bin/clang-format --dry-run --Werror

# mypy and clang-tidy need the built module and the compile commands.
analyse: install $(NATIVE)/CMakeCache.txt
	$(VENV)/bin/mypy
	git ls-files 'cpp/*.cpp' ':!cpp/bindings' ':!cpp/backend/cpu/isa' | \
	    xargs -P $(JOBS) -n 4 $(VENV)/bin/clang-tidy -p $(NATIVE) --quiet

format: setup
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .
	git ls-files '*.h' '*.cpp' | xargs $(VENV)/bin/clang-format -i

# The C++ tests and fuzzers under AddressSanitizer + UndefinedBehaviorSanitizer, then ThreadSanitizer.
sanitize: setup
	for kind in address,undefined thread; do \
	    $(CMAKE) -S . -B build/$$kind -G Ninja -DMETALLIC_PYTHON=OFF -DMETALLIC_TESTS=ON -DMETALLIC_SANITIZE=$$kind \
	        -DCMAKE_MAKE_PROGRAM=$(abspath $(VENV))/bin/ninja && \
	    $(CMAKE) --build build/$$kind -j $(JOBS) && \
	    $(VENV)/bin/ctest --test-dir build/$$kind -j $(JOBS) --output-on-failure --no-tests=error || exit 1; \
	done

clean:
	rm -rf build dist $(VENV)
