# Two commands do all the set-up: make demo, make test.
PYTHON ?= python3
BIN := .venv/bin
DEMO := runs/demo

.PHONY: setup demo test check format bench bench-peers

setup: .venv/ready

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "tellapart needs Python 3.11 or newer: make PYTHON=python3.12 …")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: setup
	rm -rf $(DEMO)
	$(BIN)/tellapart train digits --run.dir $(DEMO)
	@echo
	$(BIN)/tellapart evaluate $(DEMO)
	@echo
	$(BIN)/tellapart predict $(DEMO) examples/digit-3.png --top 3
	@echo
	@$(BIN)/python examples/demo_end.py $(DEMO)

test: setup
	$(BIN)/pytest -n 2 --dist worksteal -q

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest -n 2 --dist worksteal -q --cov --cov-report=term:skip-covered --cov-fail-under=90

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# The short measurements on the embedded data; the others want data: see docs/benchmarks.md.
bench: setup
	$(BIN)/python bench/start.py
	$(BIN)/python bench/augment_speed.py

# Against other programs, in an environment of its own. DATA: photographs, train/CLASS/* and val/CLASS/*.
bench-peers: setup .venv-peers/ready
	$(BIN)/python bench/finetune_speed.py --data $(DATA) --peers .venv-peers/bin/python
	$(BIN)/python bench/evaluate_speed.py --data $(DATA)/val
	$(BIN)/python bench/loading.py --data $(DATA)/train
	$(BIN)/python bench/transfer.py --data $(DATA)

.venv-peers/ready: bench/peers/requirements.txt
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --quiet --requirement bench/peers/requirements.txt
	touch $@
