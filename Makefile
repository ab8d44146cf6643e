# `make help` lists the targets. Each prepares .venv by itself (tools/setup); PYTHON=... names the interpreter to use.
.DEFAULT_GOAL := help
SHELL := /bin/sh
ROOT := $(abspath $(dir $(lastword $(MAKEFILE_LIST))))
BIN := $(ROOT)/.venv/bin
SETUP := $(ROOT)/tools/setup
PYTHON ?=
export PYTHON
# For how long `make soak` runs.
SECONDS ?= 1800
# What else `make bench` is told.
ARGS ?=
# So many tests run side by side.
JOBS ?= $(shell nproc)
# What runs is what .venv has installed, never the checkout.
unexport PYTHONPATH PYTHONHOME

CODE := ubpx plugins examples tests bench tools
# Where import-linter finds the packages: each distribution in its own directory.
PACKAGE_ROOTS := .:plugins/ptracepp:plugins/froggy:examples/hitcount:examples/argwatch:examples/bare_ubp
EXISTING = $(notdir $(wildcard $(addprefix $(ROOT)/,$(CODE))))

.PHONY: help
help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: demo
demo: ## Two clients share one probepoint of a running program
	@$(SETUP)
	@$(BIN)/ubpx demo

.PHONY: test
test: ## Run all tests but the long ones
	@$(SETUP) --dev --debian
	@cd $(ROOT) && $(BIN)/pytest -n $(JOBS) --dist worksteal -m "not torture and not alone"
	@cd $(ROOT) && $(BIN)/pytest -m "alone and not torture" -o faulthandler_timeout=240

.PHONY: torture
torture: ## Run the long tests
	@$(SETUP) --dev --debian
	@cd $(ROOT) && $(BIN)/pytest -m torture -o faulthandler_timeout=1200

.PHONY: stress
stress: ## Run programs among thousands of visits, children and failing clients
	@$(SETUP) --dev --debian
	@cd $(ROOT) && $(BIN)/pytest -s -m torture -o faulthandler_timeout=1200 tests/real/stress

.PHONY: soak
soak: ## Have ten clients come and go for SECONDS (1800), and a million schedules: nothing grows, nothing goes wrong
	@$(SETUP) --dev --debian
	@cd $(ROOT) && UBPX_SOAK_SECONDS=$(SECONDS) $(BIN)/pytest -s -o faulthandler_timeout=$$(($(SECONDS) + 600)) \
		tests/real/stress/test_soak.py
	@cd $(ROOT) && $(BIN)/python -m ubpx.testing.schedules --seed 1000000 --count 1000000 --jobs 2

.PHONY: fuzz
fuzz: ## Fuzz the wire layer and a live broker for an hour each
	@$(SETUP) --dev --debian
	@cd $(ROOT) && UBPX_FUZZ_SECONDS=3600 $(BIN)/pytest -s -o faulthandler_timeout=4000 \
		plugins/froggy/tests/test_fuzz.py tests/real/broker/test_fuzz_live.py

.PHONY: bench
bench: ## Measure ubpx against its peers and its limits (ARGS="--only hits", ARGS=--help)
	@$(SETUP) --dev --debian --bench
	@cd $(ROOT) && $(BIN)/python bench/run.py $(ARGS)

.PHONY: bench-publish
bench-publish: ## The same, and put the table and the figure into the README
	@$(SETUP) --dev --debian --bench
	@cd $(ROOT) && $(BIN)/python bench/run.py --publish $(ARGS)

.PHONY: coverage
coverage: ## Run the tests with branch coverage
	@$(SETUP) --dev --debian
# An alarm for a handler that overruns may strike inside coverage's own tracer, which then keeps its lock for ever.
	@cd $(ROOT) && $(BIN)/coverage run $(BIN)/pytest --ignore tests/real/test_isolation.py -k "not blocks_in_c" \
		&& $(BIN)/coverage combine --quiet && $(BIN)/coverage report

.PHONY: lint
lint: ## Check style, formatting, types and who imports whom
	@$(SETUP) --dev
	@cd $(ROOT) && $(BIN)/ruff check $(EXISTING)
	@cd $(ROOT) && $(BIN)/ruff format --check $(EXISTING)
	@cd $(ROOT) && $(BIN)/mypy $(EXISTING)
	@cd $(ROOT) && PYTHONPATH=$(PACKAGE_ROOTS) $(BIN)/lint-imports --cache-dir .cache/import-linter

.PHONY: fmt
fmt: ## Format, and mend what can be mended by itself
	@$(SETUP) --dev
	@cd $(ROOT) && $(BIN)/ruff check --fix-only --quiet $(EXISTING)
	@cd $(ROOT) && $(BIN)/ruff format $(EXISTING)

.PHONY: clean
clean: ## Remove everything that was made
	@cd $(ROOT) && rm -rf .venv build .cache .coverage .coverage.* .hypothesis
	@cd $(ROOT) && find $(EXISTING) -name __pycache__ -type d -prune -exec rm -rf {} +
