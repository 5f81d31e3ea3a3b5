# `make` lists the targets. Everything happens in .venv; nothing outside the repository is touched.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PORT ?= 8000

# Keeps the repository's root off sys.path, where the folder kernels/ would pass for Hugging Face's package.
export PYTHONSAFEPATH := 1

.DEFAULT_GOAL := help
.PHONY: help install tools serve test check format docs golden lock bench soak fleet clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP) ## Create .venv with the server, the Python client and the development tools

$(STAMP): pyproject.toml clients/python/pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "twinshot needs Python 3.11 or newer; choose one with: make PYTHON=python3.12" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]' --editable clients/python
	@touch $@

tools: $(STAMP) ## Bring helm and promtool, which the tests of deploy/ use, into .venv
	$(BIN)/python deploy/tools.py

serve: $(STAMP) ## Start the server with the built-in checkpoint (PORT=8000) and print its address
	@exec $(BIN)/twinshot serve --port $(PORT)

test: $(STAMP) ## Run every test that this machine can run; those of the client must cover it entirely
	$(BIN)/pytest --ignore=tests/clients
	$(BIN)/coverage run -m pytest tests/clients
	$(BIN)/coverage report

check: $(STAMP) ## Lint, formatting, types and layering
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP) ## Rewrite the code in the house's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(STAMP) ## Rewrite the README's latency table and docs/openapi.json from results and code
	$(BIN)/python docs/refresh.py

golden: tools ## Rewrite what the tests keep of the rendered chart, and the alerts of compose.yaml
	$(BIN)/python tests/support/charts.py

lock: ## Rewrite deploy/locks, what the images install (needs uv)
	$(PYTHON) deploy/lock.py

bench: $(STAMP) ## Measure the latency of POST /generate on this machine
	$(BIN)/python benchmarks/latency.py

soak: $(STAMP) ## Overload, leaving clients and faults: what the server keeps, in a few minutes
	PYTHONPATH=benchmarks $(BIN)/python -m soak

fleet: $(STAMP) ## Kill engines and restart servers under load, for minutes; Ray Serve: docs/FLEET.md
	PYTHONPATH=benchmarks $(BIN)/python -m fleet replicas rolling

clean: ## Remove .venv and caches
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
