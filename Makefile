# Every target does its own set-up: on a fresh Debian 12 it needs git, make, python3.11 and
# python3.11-venv, no root, no running server. `make help` lists them.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN    := .venv/bin
SETUP  := .venv/.setup-done
PEERS  := .venv/.peers-done
SITE   := .venv/.site-done

export PIP_DISABLE_PIP_VERSION_CHECK = 1

# Half of a test's time is waiting: for a lease, a limit, a server that starts.
TEST_PROCESSES ?= $(shell expr $$(nproc) + 1)

.DEFAULT_GOAL := help
.PHONY: help setup up test check bench chaos demo docs screenshots fmt lock upgrade

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(SETUP) ## make .venv with what requirements.lock names; then .venv/bin/postroom works

up: $(SETUP) ## run all of postroom on the embedded database
	@exec $(BIN)/postroom up

test: $(SETUP) ## all tests but the long ones
	$(BIN)/pytest -n $(TEST_PROCESSES) --dist worksteal

check: $(SETUP) ## format, lint, types, the reference of docs/
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python docs/make_reference.py --check
	@if find src/postroom/sql -name '*.sql' | grep -q .; then \
	    echo "$(BIN)/sqlfluff lint src/postroom/sql"; \
	    $(BIN)/sqlfluff lint --nocolor --disable-progress-bar --processes 2 src/postroom/sql; \
	fi

bench: $(SETUP) $(PEERS) ## measure the speed against the peers (BENCH="noop_drain count=5000 rounds=1 enqueue")
	$(BIN)/python bench/run.py $(BENCH)

chaos: $(SETUP) ## kills and faults for minutes; prints what was lost and doubled (SEED=, SECONDS=, SABOTAGE=1)
	$(if $(SABOTAGE),,$(BIN)/pytest -m chaos -n $(TEST_PROCESSES) --dist worksteal --timeout 1000 --session-timeout 2000)
	$(BIN)/python -m tests.chaos $(if $(SABOTAGE),--sabotage) $(if $(SEED),--seed $(SEED)) $(if $(SECONDS),--seconds $(SECONDS))

demo: $(SETUP) ## send mails and webhooks on a throw-away database, break workers, print what became of each
	@exec $(BIN)/python examples/demo.py

screenshots: $(SETUP) ## take the pictures of docs/screenshots anew (LOOK=FOLDER: every page, to look at; ONLY=name)
	$(BIN)/python -m tests.browser.screenshots $(if $(LOOK),--look $(LOOK)) $(if $(ONLY),--only $(ONLY))

docs: $(SETUP) $(SITE) ## make the reference from the code, and the site of docs/ in build/site
	$(BIN)/python docs/make_reference.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

fmt: $(SETUP) ## format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix-only .

lock: $(SETUP) ## put the dependencies of pyproject.toml into the lock files, and keep the versions that are there
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip compile --quiet $(UPGRADE) $(LOCK_FLAGS) --group dev --extra alerts --extra otel --extra psycopg -o requirements.lock pyproject.toml
	$(BIN)/uv pip compile --quiet $(UPGRADE) $(LOCK_FLAGS) --extra alerts --extra otel --extra psycopg -c requirements.lock \
	    -o deploy/requirements.lock pyproject.toml
	$(BIN)/uv pip compile --quiet $(UPGRADE) $(LOCK_FLAGS) --group bench -c requirements.lock \
	    -o bench/requirements.lock pyproject.toml
	$(BIN)/uv pip compile --quiet $(UPGRADE) $(LOCK_FLAGS) --group docs -c requirements.lock \
	    -o docs/requirements.lock pyproject.toml
	@for peer in bench/peers/*.in; do \
	    flags="$(LOCK_FLAGS)"; case $$peer in */oban.in) flags="$(subst 3.11,3.12,$(LOCK_FLAGS))";; esac; \
	    $(BIN)/uv pip compile --quiet $(UPGRADE) $$flags -o $${peer%.in}.lock $$peer; \
	done

upgrade: UPGRADE := --upgrade
upgrade: lock ## the same with the newest versions that pyproject.toml allows

LOCK_FLAGS := --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
    --no-emit-index-url --no-emit-find-links

# A set-up that was cut off leaves no stamp and is taken up again; a .venv without pip is made anew.
$(SETUP): requirements.lock pyproject.toml
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || { rm -rf .venv && $(PYTHON) -m venv .venv; }
	$(BIN)/python -m pip install --quiet --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

$(PEERS): bench/requirements.lock $(SETUP)
	$(BIN)/python -m pip install --quiet --require-hashes -r bench/requirements.lock
	@touch $@

$(SITE): docs/requirements.lock $(SETUP)
	$(BIN)/python -m pip install --quiet --require-hashes -r docs/requirements.lock
	@touch $@
