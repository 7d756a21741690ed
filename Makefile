# Each target installs what it needs and is missing, and lists that before it starts: Debian packages, Python packages
# (scripts/install-needs).

# The system's Python before one of one's own: distributions build theirs with profile-guided optimisation, and with it
# each operation on a mount costs a fifth less.
PYTHON ?= $(shell /usr/bin/python3 -c 'import sys; assert sys.version_info >= (3, 11); print(sys.executable)' \
	2>/dev/null || echo python3)
VENV ?= .venv
BIN := $(VENV)/bin
# Stamps: what is installed in $(VENV). `make demo` is content with the first, which compiles nothing and so is quick;
# everything for developers needs the last.
QUICK := $(VENV)/installed-quick
RUNTIME := $(VENV)/installed-runtime
DEVELOPER := $(VENV)/installed
NEEDS := PYTHON="$(PYTHON)" VENV="$(VENV)" scripts/install-needs
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: help demo demo-hosts unit test lint docs venv runtime build clean

help:
	@echo "make demo     pins at work, with real processes (needs /dev/fuse)"
	@echo "make demo-hosts  pins across two hosts, on one machine (needs /dev/fuse, and etcd or a Debian mirror)"
	@echo "make unit     the tests that need neither root nor a mount, two minutes"
	@echo "make test     all tests (need root and /dev/fuse); TESTS=tests/core, PYTEST_ARGS=-x for some"
	@echo "make lint     ruff and mypy"
	@echo "make docs     the documentation as a site, in site/; a broken link is an error"
	@echo "make runtime  the virtual environment $(VENV) with pinfs in it, and no more"
	@echo "make venv     the same with everything that the other targets need"
	@echo "make build    compiles what has changed since (make unit and make test do that by themselves)"
	@echo "make clean    removes $(VENV) and caches"

demo:
	@test -e $(RUNTIME) || $(NEEDS) runtime demo
	@test -e $(RUNTIME) || $(MAKE) --no-print-directory $(QUICK)
	@$(BIN)/python -m demo

demo-hosts:
	@test -e $(RUNTIME) || $(NEEDS) runtime
	@test -e $(RUNTIME) || $(MAKE) --no-print-directory $(QUICK)
	@$(BIN)/python -c 'import h11' 2>/dev/null || $(PIP) --quiet install h11
	@$(BIN)/python -m demo.hosts

unit: build
	@$(BIN)/python -m pytest -m unit $(PYTEST_ARGS) $(TESTS)

test:
	@$(NEEDS) developer test
	@$(MAKE) --no-print-directory build
	@$(BIN)/python -m pytest $(PYTEST_ARGS) $(TESTS)
	@# What compiled code does not show (marker `interpreted`), where no choice was made.
	@test -n "$(PYTEST_ARGS)$(TESTS)$(PINFS_PURE)" || PINFS_PURE=1 $(BIN)/python -m pytest -m interpreted

lint: venv
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

docs: venv
	@$(BIN)/mkdocs build --quiet --strict

runtime:
	@$(NEEDS) runtime demo
	@$(MAKE) --no-print-directory $(RUNTIME)

venv:
	@$(NEEDS) developer
	@$(MAKE) --no-print-directory $(DEVELOPER)

build: venv
	@$(BIN)/python setup.py --quiet build_ext --inplace

$(QUICK): pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@PINFS_PURE=1 $(PIP) --quiet install --editable .
	@touch $@

$(RUNTIME): pyproject.toml setup.py
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) --quiet install --editable .
	@touch $@

$(DEVELOPER): pyproject.toml setup.py
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) --quiet install --editable '.[dev]'
	@touch $(RUNTIME) $@

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis build site *.egg-info
	find pinfs -name '*.so' -delete
	find . -name __pycache__ -prune -exec rm -rf {} +
