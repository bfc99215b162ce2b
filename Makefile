# `make` lists the targets. Three stamps in .venv say what is installed, so that a second call installs nothing.

PYTHON ?= python3
HOST =# not taken from the environment, where some shells keep the machine's name
PORT ?=
WORKERS ?=
SEED ?=
EXTRA ?=
RECIPE ?= models/train/recipes/fashion-mnist-28.toml
BENCH ?= engine exact latency peers pollers fetch
OUT ?= runs/$(notdir $(basename $(RECIPE)))

TORCH = 2.13.0
# What that torch brings where it carries CUDA; the tests of kernels need it beside torch for CPUs, too.
TRITON = 3.7.1
# Tests of times, and of what is lost in them, which neighbours would make false.
ALONE = tests/e2e/test_estimates.py tests/chaos
LUA = worker/jobs/lua
PRODUCT = app worker models cli bench
SCHEMA = $(BIN)/check-jsonschema --builtin-schema vendor.github
FORMS = .github/ISSUE_TEMPLATE
BIN = .venv/bin
# Three, as they often wait; the slow files first; one thread each, as processes that compute by two
# would wait for each other.
SIDE_BY_SIDE = pytest -n 3 --dist loadfile --no-loadscope-reorder
ONE_THREAD = OMP_NUM_THREADS=1
PIP = $(BIN)/python -m pip --disable-pip-version-check
INSTALL = $(PIP) install --quiet --no-compile -c constraints.txt
SERVE = .venv/.installed-serve
TEST = .venv/.installed-test
DOCS = .venv/.installed-docs
INSTALLED = pyproject.toml constraints.txt hatch_build.py worker/backends/cpu/kernels.c

.DEFAULT_GOAL = help
.PHONY: help serve extra test check wheel-check format train bench chaos docs docs-reference docker-test lock clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' Makefile

serve: $(SERVE) ## run the service on http://127.0.0.1:8000 (HOST= PORT= WORKERS=)
	@exec $(BIN)/ddpm up $(if $(HOST),--host '$(HOST)') $(if $(PORT),--port '$(PORT)') $(if $(WORKERS),--workers '$(WORKERS)')

extra: $(SERVE) ## install an extra, editable and with the constraints (EXTRA=s3, train, tensorboard or otel)
	@[ -n '$(EXTRA)' ] || { echo 'name it: make extra EXTRA=s3, EXTRA=train, EXTRA=tensorboard or EXTRA=otel'; exit 1; }
	$(INSTALL) -e '.[$(EXTRA)]'

# Coverage is measured of all tests but those that are to run alone: measuring slows what they time.
test: $(TEST) ## run every test that this machine can run, and measure coverage (ARGS= goes to pytest, unmeasured; -n0: one at a time)
ifdef ARGS
	$(ONE_THREAD) $(BIN)/python -m $(SIDE_BY_SIDE) $(ARGS)
else
	$(BIN)/coverage erase
	$(ONE_THREAD) $(BIN)/coverage run -m $(SIDE_BY_SIDE) $(ALONE:%=--ignore %)
	$(BIN)/python -m pytest $(ALONE)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report
endif

check: $(TEST) ## format, lint, types, who imports whom, docstrings, GitHub's files, Lua, structure
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/interrogate --quiet $(PRODUCT) || $(BIN)/interrogate -vv $(PRODUCT)
	$(SCHEMA)-workflows .github/workflows/*.yml
	$(SCHEMA)-issue-config $(FORMS)/config.yml
	$(SCHEMA)-issue-forms $(filter-out %/config.yml,$(wildcard $(FORMS)/*.yml))
	@if command -v luacheck >/dev/null; then luacheck --quiet --no-color --codes $(LUA); else \
	  echo 'NOT CHECKED: the Lua scripts, as luacheck is not here; apt-get install lua-check, or brew install luacheck'; \
	  [ -z "$$CI" ]; fi
	$(BIN)/python -m tools.check_structure

wheel-check: $(TEST) ## build the package, install it outside the checkout and use it
	$(BIN)/python tests/packaging/check_wheel.py --packages-from .venv

format: $(TEST) ## format the code and mend what ruff can
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

train: $(TEST) ## train a network (RECIPE= OUT=); Ctrl-C saves, the next call resumes
	$(BIN)/ddpm train '$(RECIPE)' --out '$(OUT)'

bench: $(TEST) ## measure what docs/reference/benchmarks.md says (BENCH='engine exact' names some, ARGS= goes to each)
	@set -e; for name in $(BENCH); do echo "bench.$$name"; $(BIN)/python -m "bench.commands.$$name" $(ARGS); done

chaos: $(TEST) ## kill workers, queue and API for minutes, and compare every picture (SEED=); docs/how-to/test-with-chaos.md
	@$(BIN)/python -m tests.chaos $(if $(SEED),--seed '$(SEED)')

docs: $(DOCS) ## build the documentation into build/docs; a link that leads nowhere is an error
	rm -rf build/docs
	$(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going docs build/docs
	@echo 'open build/docs/index.html'

docs-reference: $(TEST) ## write the reference of the API, the command and the models anew, from the code
	$(BIN)/python -m docs.generate

docker-test: ## build the image, run it with Compose and sample through the published port
	tests/docker/run.sh

lock: ## write constraints.txt anew from what a clean environment gets
	rm -rf .venv-lock && $(PYTHON) -m venv .venv-lock
	.venv-lock/bin/python -m pip install --quiet torch==$(TORCH) triton==$(TRITON) setuptools '.[train,test,docs]'
	.venv-lock/bin/python -m pip freeze --all | grep -v -E '^(ddpm-service|pip|nvidia|cuda)\b' | sed 's/+[a-z0-9]*$$//' > constraints.txt
	rm -rf .venv-lock

clean: ## remove .venv and caches; .ddpm/ and runs/ stay
	rm -rf .venv .venv-lock .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .coverage .coverage.*

.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, %s is " % sys.executable + sys.version.split()[0] + "; name one with PYTHON=")'
	$(PYTHON) -m venv .venv

$(SERVE): $(INSTALLED) | .venv/bin/python
	$(INSTALL) -e .
	@touch $@

$(TEST): $(INSTALLED) | .venv/bin/python
	$(INSTALL) -e '.[train,test]'
	@touch $@ $(SERVE)

$(DOCS): $(INSTALLED) | .venv/bin/python
	$(INSTALL) -e '.[docs]'
	@touch $@ $(SERVE)
