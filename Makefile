# Everything sets itself up: a fresh machine needs Python (3.11 or later) and make.
PY := .venv/bin/python

.PHONY: demo test check bench sim torture fmt setup clean

# The stamps lie in .venv, so that they go when it goes.
.venv/.dev: pyproject.toml uv.lock scripts/setup
	@sh scripts/setup dev
	@touch $@

.venv/.bench: pyproject.toml uv.lock scripts/setup | .venv/.dev
	@sh scripts/setup bench
	@touch $@

setup: .venv/.dev

demo: .venv/.dev  ## the invoice desk, killed half-way (FOLDER=... for your own mails; run `perdure demo` to answer yourself)
	@$(PY) -m perdure.demo --yes $(FOLDER)

test: .venv/.dev  ## the everyday suite
	@$(PY) -m pytest -q $(ARGS)

check: .venv/.dev  ## format, lint, types, rooms, tidy and docs
	@.venv/bin/ruff format --check src tests bench
	@.venv/bin/ruff check src tests bench
	@.venv/bin/mypy
	@.venv/bin/lint-imports --no-cache
	@$(PY) -m pytest -q tests/house

sim: .venv/.dev  ## 200 simulated worlds (ARGS="--seeds 5000" for more)
	@$(PY) -m perdure.testing.simulate --seeds 200 $(ARGS)

KILLS := 10000
torture: .venv/.dev  ## kill -9 of real workers at every journal boundary, and 10,000 times at random under governance (KILLS=1000 for less)
	@$(PY) -m perdure.testing.torture $(ARGS)
	@$(PY) -m bench.torture --kills $(KILLS)

bench: .venv/.bench  ## figures and rivals, side by side in one run
	@$(PY) -m bench $(ARGS)

fmt: .venv/.dev
	@.venv/bin/ruff format src tests bench
	@.venv/bin/ruff check --fix src tests bench

clean:
	@rm -rf .venv .setup .mypy_cache .ruff_cache .pytest_cache
