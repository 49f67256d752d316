# make demo    train, deploy and measure an MLP on handwritten digits
# make test    run the tests
# make bench   measure the layers against PyTorch's
# make bench-decoder   measure a language model of 2 billion weights against transformers' in bfloat16
# make check   lint and types
# make test-core, test-neon    the kernels' own C++ test: here with sanitizers; for Arm under qemu
# make test-triton    run the Triton kernels on the CPU, by Triton's interpreter
# make test-gpu    on a machine with a GPU and its own torch: build the CUDA kernels in place, and test them
# make compile-cuda    compile the CUDA kernels for all architectures; needs nvcc, no GPU
# make clean   remove the environment and everything built
# All but test-core, test-neon, test-gpu and clean set up .venv when it is missing: pinned dependencies, then this package
# with its compiled kernels.

PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-core test-neon test-triton test-cuda-emulated test-gpu compile-cuda bench bench-decoder check lint types clean

demo: .venv/ready
	$(BIN)/python examples/mnist_mlp.py --compare --seeds 5

test: .venv/ready
	$(BIN)/python -m pytest

test-core:
	$(PYTHON) tests/csrc/run_core_test.py --sanitize portable

# The second CPU has no matrix products, the third no dot products: their kernels must not be chosen, and the others must do.
NEON_TESTS = $(addprefix test-neon-,max neoverse-n1 cortex-a53)
test-neon: $(NEON_TESTS)
test-neon-max: KERNELS = neon neon_dotprod neon_i8mm portable
test-neon-neoverse-n1: KERNELS = neon neon_dotprod portable
test-neon-cortex-a53: KERNELS = neon portable
.PHONY: $(NEON_TESTS)
$(NEON_TESTS): test-neon-%:
	$(PYTHON) tests/csrc/run_core_test.py --machine aarch64 --compiler aarch64-linux-gnu-g++ \
	  --runner "qemu-aarch64 -cpu $*" $(KERNELS)

# Not all of tests/kernels: a kernel is compiled for every class of sizes, or interpreted.
TRITON_TESTS = tests/triton/test_products.py tests/kernels \
  -k "test_products or test_training_operators and triton or triton and (any_shape or nan_and_inf or strides or empty)"
test-triton: .venv/ready
	TRITON_INTERPRET=1 BITLAB_REQUIRED_KERNELS=triton $(BIN)/python -m pytest $(TRITON_TESTS)

# Started with the sanitizer's library, as Python is built without it; what it finds, it writes to the terminal.
test-cuda-emulated: .venv/ready
	$(BIN)/python tests/cuda_emulator/build_emulator.py
	BITLAB_CUDA_EMULATOR=build/objects/cuda_emulator/cuda_emulator.so ASAN_OPTIONS=detect_leaks=0 \
	  LD_PRELOAD=$$(g++ -print-file-name=libasan.so) $(BIN)/python -m pytest --capture=sys tests/cuda_emulator

test-gpu:
	BUILD_CUDA_EXTENSIONS=1 $(PYTHON) build_extensions.py
	PYTHONPATH=.:$$PYTHONPATH BITLAB_REQUIRED_KERNELS=cuda $(PYTHON) -m pytest tests/gpu tests/kernels -k "not triton"
	PYTHONPATH=.:$$PYTHONPATH BITLAB_REQUIRED_KERNELS=triton $(PYTHON) -m pytest $(TRITON_TESTS)

compile-cuda: .venv/ready
	BUILD_CUDA_EXTENSIONS=1 $(BIN)/python build_extensions.py

bench: .venv/ready
	$(BIN)/python benchmarks/bench_linear.py

bench-decoder: .venv/ready
	$(BIN)/python benchmarks/bench_decoder.py

check: lint types

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $$(git ls-files '*.cpp' '*.h' '*.cu' '*.cuh')

types: .venv/ready
	$(BIN)/mypy

# torch first: the build needs it, and build isolation would fetch another one.
.venv/ready: requirements.txt pyproject.toml setup.py $(wildcard build_*.py) $(shell find bitcore/csrc -type f)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/python build_extensions.py || test "$$BUILD_CPP_EXTENSIONS" != 1
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps --editable .
	touch $@

clean:
	rm -rf .venv build *.egg-info
	$(PYTHON) build_extensions.py --clean
