# `make demo` and `make test` do all their own set-up, on a machine with Python 3.11 or newer.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test check browser clean

demo: .venv/ready
	$(BIN)/nanochat speedrun --run runs/demo

test: .venv/ready-dev check browser
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2

check: .venv/ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The page's tests want a Chromium; they are skipped where it isn't there and can't be had.
browser:
	@command -v chromium > /dev/null || { test "$$(id -u)" = 0 && apt-get update -qq && \
		apt-get install -y -qq --no-install-recommends chromium > /dev/null; } || \
		echo "There is no chromium: the tests of the chat page will be skipped."

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

.venv/ready-dev: .venv/ready
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

clean:
	rm -rf .venv build *.egg-info
