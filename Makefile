# `make repro` runs the main job on the embedded data; `make test` runs every check; `make docs` builds the site into
# build/site. Each sets up what it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
AXE := build/node/.installed
export DVC_NO_ANALYTICS := 1
export PYTHONHASHSEED := 0

.PHONY: setup repro test check quick docs bench clean

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=23.2'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

repro: setup
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/dvc repro
	@cat reports/summary.txt
	@echo "The student to ship, as a tested ONNX file: exported/student (README.md there has the code that runs it)"

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	PATH="$(CURDIR)/$(BIN):$$PATH" PYTHONPATH=pipeline $(BIN)/lint-imports

test: check $(AXE)
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/pytest -n 2

# The test of accessibility is skipped where npm is missing or finds no registry.
$(AXE): tests/browser/package-lock.json
	@mkdir -p $(@D) && cp tests/browser/package.json tests/browser/package-lock.json $(@D)
	@command -v npm > /dev/null && cd $(@D) && npm ci --silent --ignore-scripts --no-audit --no-fund --fetch-retries=1 \
		&& touch $(CURDIR)/$@ || echo "axe-core is not installed: npm is missing, or did not find it."

quick: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/pytest -n 2 $$($(BIN)/python tests/changed.py)

docs: $(VENV)/.docs
	$(BIN)/python docs/tables.py --check
	$(BIN)/python docs/generate.py
	rm -rf build/site
	$(BIN)/zensical build --clean --strict
	$(BIN)/python docs/check.py

$(VENV)/.docs: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	touch $@

bench: setup
	@test -n "$(CIFAR10)" -a -n "$(WEIGHTS)" || { echo "usage: make bench CIFAR10=FOLDER WEIGHTS=FILE"; exit 1; }
	$(BIN)/python benchmarks/cifar10.py --data folder:$(CIFAR10) --weights $(WEIGHTS)
	$(BIN)/python benchmarks/encodings.py --data folder:$(CIFAR10) --weights $(WEIGHTS)
	$(BIN)/python benchmarks/cache_overhead.py --data folder:$(CIFAR10) --weights $(WEIGHTS)
	$(BIN)/python benchmarks/kill_resume.py --data folder:$(CIFAR10) --weights $(WEIGHTS)

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .cache build docs/generated
