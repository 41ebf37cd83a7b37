# Two commands matter: `make run` and `make test`. `make help` lists the rest.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PY := .venv/bin/python
INSTALLED := .venv/.installed
# One process a core; more threads than that would only wait for each other (torch's, on tiny models, cost fivefold).
PARALLEL := OMP_NUM_THREADS=1 $(PY) -m pytest -n auto --durations=20 --durations-min=5
# Of the end-to-end tests; each has up to two engines. One needs less memory, and half as long again or more.
E2E_PROCESSES ?= 2

.PHONY: help setup pages pages-test run test check fix unit integration contract clients integrations docs pictures e2e e2e-postgres demo bench bench-rollout chaos lock clean

help: ## show this list
	@grep -E '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

$(INSTALLED): pyproject.toml requirements/install.sh requirements/cpu.txt requirements/gpu.txt requirements/model.txt
	@requirements/install.sh

setup: $(INSTALLED) ## create .venv and install the locked stack (GPU where nvidia-smi answers)

pages: setup ## build chat page and console into the server (Node >= 20, else one from PyPI in .venv)
	@clients/web/build.sh

run: setup ## start engine, server and trainer; Ctrl-C stops all three
	@clients/web/build.sh || true # without its pages the server serves all the same
	@$(PY) -m plaudit_server up

test: check unit integration contract clients pages-test e2e ## everything CI runs

check: setup ## format, lint, types, layers
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy
	.venv/bin/lint-imports

fix: setup ## format and mend what ruff can mend
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

unit: setup ## pure functions, seconds
	$(PARALLEL) tests/unit

integration: setup pages ## SQLite, ASGI, files
	$(PARALLEL) tests/integration

contract: setup ## light import, OpenAPI drift, documented settings, containers
	$(PARALLEL) tests/contract

clients: setup ## TypeScript packages: npm ci, type check, build, tests against the real server (needs Node >= 20)
	$(PY) -m pytest tests/clients

integrations: setup ## thumbs of the real Gradio, Chainlit and Open WebUI in a real Chromium, each installed into .venv/with; not part of make test
	@tests/pages/chromium.sh
	@for name in gradio chainlit open-webui; do tests/integrations/install.sh $$name || true; done # what is not there is skipped
	$(PY) -m pytest tests/integrations

pages-test: setup pages ## the pages and the web component in a real Chromium, on the real server with the fake engine
	@tests/pages/chromium.sh
	$(PY) -m pytest tests/pages
	$(PY) -m pytest tests/browser

e2e: setup pages ## real vLLM, real model, real processes, a real Chromium
	@tests/pages/chromium.sh
	$(PY) -m pytest -n $(E2E_PROCESSES) --no-loadscope-reorder tests/e2e --durations=12

e2e-postgres: setup pages ## the end-to-end tests of whole services once more, on a real PostgreSQL; not part of make test, where test_fleet has one
	TESTS_STORE=postgres $(PY) -m pytest tests/e2e/test_loop.py tests/e2e/test_chaos.py tests/e2e/test_people.py --durations=12

docs: ## build the documentation site into dist/docs/site, strictly: a broken link fails
	@docs/site/build.sh

pictures: pages-test ## take the screenshots that the tests of the pages leave over into docs/images
	$(PY) docs/site/pictures.py

demo: setup ## simulated users with stated tastes; the trainer learns them; about 12 minutes a taste on 2 cores
	$(PY) -m benchmarks.demo

chaos: setup ## kill -9 of server, engine or trainer at 20 random moments
	PLAUDIT_CHAOS_KILLS=20 $(PY) -m pytest tests/e2e/test_chaos.py -m chaos -s

bench: setup ## every benchmark; each writes benchmarks/results/<name>.json
	$(PY) -m benchmarks.swap_proof
	$(PY) -m benchmarks.ppo_speed
	$(PY) -m benchmarks.gateway
	$(PY) -m benchmarks.staleness
	$(PY) -m benchmarks.swap
	$(PY) -m benchmarks.rollback
	$(PY) -m benchmarks.decode
	$(PY) -m benchmarks.train_beside
	$(PY) -m benchmarks.long_prompt
	$(PY) -m benchmarks.learning_curve
	$(PY) -m benchmarks.rollout
	$(PY) -m benchmarks.store
	@echo 'with data (see their --help): $(PY) -m benchmarks.reward_model, $(PY) -m benchmarks.tune'

bench-rollout: setup ## canaries simulated by the thousand: how often they judge rightly
	OMP_NUM_THREADS=1 $(PY) -m benchmarks.rollout

lock: setup ## compile requirements/*.in to locks with hashes (needs uv)
	requirements/lock.sh

clean: ## remove .venv and caches; data/ stays
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .import_linter_cache dist
