# Needs Python 3.10 or later and a C++20 compiler; everything else comes into .venv. A second run does nothing again:
# the stamps in .venv carry a hash of what they were made from.
TORCH  ?= 2.13.0
PYTHON ?= python3
ifeq ($(origin CXX),default)
CXX := c++
endif

VENV := .venv
PY   := $(VENV)/bin/python
BUILD_DIR := build

DEPENDENCY_FILES := pyproject.toml constraints.txt
BUILD_FILES := setup.py lcs_kernels/_build.py $(sort $(shell find csrc -type f))
hash = $(shell { echo '$(1)'; cat $(2); } | sha256sum | cut -c1-16)
INSTALLED := $(VENV)/.installed-$(call hash,$(TORCH) $(PYTHON),$(DEPENDENCY_FILES))
BUILT := $(VENV)/.built-$(call hash,$(TORCH) $(PYTHON) $(CXX),$(DEPENDENCY_FILES) $(BUILD_FILES))

ifeq ($(and $(wildcard lcs_kernels/_C.so),$(wildcard lcs_core*.so)),)
.PHONY: $(BUILT)
endif
.PHONY: build test ctest sanitize emulate demo bench gpu-check lint format clean
.DELETE_ON_ERROR:

build: $(BUILT)

test: build # its threads sleep while they wait: spinning, they would take the cores from whatever else runs
	OMP_WAIT_POLICY=passive $(PY) -m pytest $(ARGS)

# A CMake build of the torch-free core, and its tests: $(1) is the build folder, $(2) the sanitizers.
CMAKE_PYTHON = $(if $(wildcard $(PY)),$(CURDIR)/$(PY),$(shell command -v $(PYTHON)))
define core
	@command -v cmake > /dev/null || { echo "lcs-kernels: make $@ needs cmake 3.20 or later" >&2; exit 1; }
	cmake -S . -B $(BUILD_DIR)/$(1) -DPython_EXECUTABLE='$(CMAKE_PYTHON)' -DLCS_SANITIZE='$(2)' > /dev/null
	cmake --build $(BUILD_DIR)/$(1) --parallel $$(nproc)
	ctest --test-dir $(BUILD_DIR)/$(1) --parallel $$(nproc) --output-on-failure
endef

ctest: # lcs_core too, where the environment holds pybind11
	$(call core,core,)

COMMA := ,
sanitize:
	$(call core,sanitize,address$(COMMA)undefined)
	$(call core,sanitize-thread,thread)

emulate: # the kernels' tests with AVX-512 in portable C, from a clone of SIMDe: make emulate SIMDE=folder
	CXX='$(CXX)' tests/cpp/emulated/run.sh '$(SIMDE)'

demo: build
	$(PY) -m lcs demo $(if $(QUICK),--quick) $(ARGS)

bench: build
	$(PY) -m lcs_kernels.benchmarks $(ARGS)

gpu-check: # on the card of this machine, without a network: the Python of .venv if there is one, else $(PYTHON)
	$(or $(wildcard $(PY)),$(PYTHON)) benchmarks/gpu_check.py $(ARGS)

CXX_FILES = $(shell find csrc tests/cpp benchmarks -name '*.cpp' -o -name '*.h' -o -name '*.inl' -o -name '*.cu' -o -name '*.cuh')
lint: $(INSTALLED)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/clang-format --dry-run -Werror $(CXX_FILES)

format: $(INSTALLED)
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .
	$(VENV)/bin/clang-format -i $(CXX_FILES)

clean: # all that is built; the installed packages stay (rm -r .venv removes them)
	rm -rf $(BUILD_DIR) dist *.egg-info *.so lcs_kernels/*.so $(VENV)/.built-* .pytest_cache .ruff_cache

VERSION_OF = -c 'import sys; print("%d.%d" % sys.version_info[:2])'
$(INSTALLED):
	@$(PYTHON) -c '' > /dev/null 2>&1 || \
	  { echo "lcs-kernels: there is no Python '$(PYTHON)' that runs; name another one: make PYTHON=python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "lcs-kernels: $(PYTHON) must be Python 3.10 or later; name another one: make PYTHON=python3.11" >&2; exit 1; }
	@! $(PY) -m pip --version > /dev/null 2>&1 || test "$$($(PY) $(VERSION_OF))" = "$$($(PYTHON) $(VERSION_OF))" || \
	  { echo "lcs-kernels: $(VENV) holds Python $$($(PY) $(VERSION_OF)), but $(PYTHON) is $$($(PYTHON) $(VERSION_OF));" \
	  "name the same (make PYTHON=...), or remove the other: rm -r $(VENV)" >&2; exit 1; }
	@echo "installing torch $(TORCH) and the dependencies into $(VENV)"
	$(PY) -m pip --version > /dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	$(PY) -m pip install --quiet -c constraints.txt setuptools torch==$(TORCH)
	LCS_BUILD=0 $(PY) -m pip install --quiet --no-build-isolation -c constraints.txt torch==$(TORCH) -e '.[train,dev]'
	@rm -f $(VENV)/.installed-* $(VENV)/.built-* && touch $@

$(BUILT): | $(INSTALLED)
	@set -- $(CXX); command -v "$$1" > /dev/null || \
	  { echo "lcs-kernels: no C++ compiler '$$1'; install g++ 10 or later, or name another one: make CXX=clang++" >&2; exit 1; }
	CXX='$(CXX)' LCS_BUILD=1 $(PY) -m pip install --quiet --no-build-isolation --no-deps -e .
	@rm -f $(VENV)/.built-* && touch $@
