# Each target installs what it needs and is missing, and says so: Debian packages (scripts/install-needs), a virtual
# environment, Python packages.

# The system's Python before one of one's own: distributions build theirs with profile-guided optimisation, and with it
# each operation on a mount costs a fifth less.
PYTHON ?= $(shell /usr/bin/python3 -c 'import sys; assert sys.version_info >= (3, 11); print(sys.executable)' \
	2>/dev/null || echo python3)
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed

.PHONY: help demo test lint docs venv clean

help:
	@echo "make demo    pins at work, with real processes (needs /dev/fuse)"
	@echo "make test    all tests (need root and /dev/fuse); TESTS=tests/core, PYTEST_ARGS=-x for some"
	@echo "make lint    ruff and mypy"
	@echo "make docs    the documentation as a site, in site/; a broken link is an error"
	@echo "make venv    the virtual environment $(VENV) with pinfs in it"
	@echo "make clean   removes $(VENV) and caches"

demo: venv
	@$(BIN)/python -m demo

test: venv
	@PYTHON="$(PYTHON)" scripts/install-needs test
	@$(BIN)/python -m pytest $(PYTEST_ARGS) $(TESTS)

lint: venv
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

docs: venv
	@$(BIN)/mkdocs build --quiet --strict

venv:
	@PYTHON="$(PYTHON)" scripts/install-needs
	@$(MAKE) --no-print-directory $(INSTALLED)

$(INSTALLED): pyproject.toml
	@echo "Installing Python packages into $(VENV):"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip --disable-pip-version-check --quiet install --editable '.[dev]'
	@$(BIN)/python -m pip --disable-pip-version-check list --format=freeze | sed 's/^/    /'
	@touch $@

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis build *.egg-info
	find . -name __pycache__ -prune -exec rm -rf {} +
