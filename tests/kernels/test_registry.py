"""Decisions, on this machine and on invented ones."""

import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from importlib.metadata import EntryPoint

import pytest
import torch
from torch import Tensor

from bitcore import BitQuantConfig, extensions
from bitcore.exceptions import ArgumentError, DeviceError, ExtensionWarning, KernelNotFoundError
from bitcore.kernels import BitKernelBase, KernelRegistry, KernelRequest, registry
from bitcore.kernels.cuda import CudaKernel
from bitcore.kernels.reference import ReferenceKernel
from bitcore.packed_weight import PackedWeight
from bitlayers import BitLinear

CONFIG = BitQuantConfig()


@pytest.fixture
def own_registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Registrations of a test are gone after it."""
    monkeypatch.setattr(KernelRegistry, "_kernels", dict(KernelRegistry._kernels))
    monkeypatch.setattr(KernelRegistry, "_failed_plugins", {})
    yield
    KernelRegistry._forget_decisions()


class CountingKernel(ReferenceKernel):
    """The reference, counting its calls."""

    calls = 0

    def linear(self, x: Tensor, weight: PackedWeight, bias: Tensor | None = None) -> Tensor:
        type(self).calls += 1
        return super().linear(x, weight, bias)


UNALIGNED_GROUPS = BitQuantConfig(weight_granularity="per_group", group_size=30)  # groups begin within a byte


def test_reference_serves_what_no_other_does() -> None:
    assert KernelRegistry.get_kernel_for_config(UNALIGNED_GROUPS).name == "reference"
    assert ReferenceKernel.unsupported_reason(KernelRequest(UNALIGNED_GROUPS, "cpu", torch.float64)) is None
    for device in ("cuda", "mps", "meta"):
        request = KernelRequest(CONFIG, device, torch.float32)
        assert ReferenceKernel.unsupported_reason(request) is None


def test_what_is_no_device_or_config_is_named() -> None:
    for ask in (KernelRegistry.get_kernel_for_config, KernelRegistry.explain):
        with pytest.raises(DeviceError, match=r"device is 'gpu', expected a torch.device or its name"):
            ask(CONFIG, device="gpu")
        with pytest.raises(ArgumentError, match=r"quant_config is 'ternary', expected a BitQuantConfig"):
            ask("ternary")  # type: ignore[arg-type]


def test_compiled_kernels_come_before_the_reference() -> None:
    names = [
        name
        for name in KernelRegistry.list_available_kernels()
        if "cpu" in (KernelRegistry._kernels[name].device_types or {"cpu"})
    ]
    assert names[-1] == "reference"
    assert (
        type(KernelRegistry.get_kernel_for_config(CONFIG, device="cpu")).__name__
        == KernelRegistry._kernels[names[0]].__name__
    )
    assert KernelRegistry.get_kernel_for_config(CONFIG).has_cpp_backend == (len(names) > 1)


def test_no_two_kernels_share_a_priority() -> None:
    priorities = [kernel.priority for kernel in KernelRegistry._kernels.values()]
    assert len(set(priorities)) == len(priorities)


def test_unknown_name_lists_the_known_ones() -> None:
    names = ", ".join(sorted(KernelRegistry._kernels))
    for ask in (
        lambda: KernelRegistry.get_kernel_by_name("avx51", CONFIG),
        lambda: KernelRegistry.use("avx51").__enter__(),
    ):
        with pytest.raises(KernelNotFoundError) as error:
            ask()
        assert str(error.value) == f"no kernel is named 'avx51'; there are {names}"


def test_forced_kernel_never_gives_way() -> None:
    with pytest.raises(
        KernelNotFoundError,
        match=r"only kernel 'portable' was asked[\s\S]*(group_size is 30, serves multiples of 4|not built)",
    ):
        KernelRegistry.get_kernel_by_name("portable", UNALIGNED_GROUPS)
    with KernelRegistry.use("portable"), pytest.raises(KernelNotFoundError, match="portable"):
        KernelRegistry.get_kernel_for_config(UNALIGNED_GROUPS)


INT8_ROWS = BitQuantConfig(weight_dtype="int8", weight_granularity="per_channel")


@pytest.mark.parametrize(("config", "most"), [(BitQuantConfig.int4(), 2**20), (INT8_ROWS, 2**16)], ids=["int4", "int8"])
def test_compiled_kernels_refuse_sums_that_int32_does_not_hold(config: BitQuantConfig, most: int) -> None:
    kernel = KernelRegistry._kernels["portable"]
    refusal = f"in_features is {most + 1}, int32 sums hold {most} of {config.weight_dtype}"
    for in_features, reason in ((most, None), (most + 1, refusal)):
        assert kernel.unsupported_reason(KernelRequest(config, "cpu", torch.float32, in_features, 1)) == reason


def test_int8_weights_are_for_compiled_kernels_alone() -> None:
    request = KernelRequest(INT8_ROWS, "cuda", torch.float32, 9, 9)
    assert KernelRegistry._kernels["cuda"].unsupported_reason(request) is None
    reason = KernelRegistry._kernels["triton"].unsupported_reason(request)
    assert reason is not None and "weight_dtype is int8, serves int4, ternary" in reason


def test_sums_of_int8_weights_beyond_int32_are_exact() -> None:
    config = BitQuantConfig(weight_dtype="int8")
    weight = PackedWeight(torch.zeros(1, 2**18, dtype=torch.uint8), torch.ones(1), None, 2**18)  # all are -128
    y = ReferenceKernel(config).linear(torch.ones(1, 2**18), weight)
    assert y.item() == pytest.approx(-(2.0**25), rel=1e-6)


def test_use_reaches_layers_that_have_decided(own_registry: None) -> None:
    KernelRegistry.register("counting", priority=-1)(CountingKernel)
    layer = BitLinear(16, 4).deploy()
    x = torch.randn(2, 16)
    y = layer(x)
    CountingKernel.calls = 0
    with KernelRegistry.use("counting"):
        assert layer.kernel.name == "counting"
        assert torch.equal(layer(x), y)
        with KernelRegistry.use("reference"):
            assert layer.kernel.name == "reference"
    assert CountingKernel.calls == 1
    assert layer.kernel.name != "counting"


def test_use_is_seen_by_its_own_thread_alone(own_registry: None) -> None:
    layer = BitLinear(16, 4).deploy()
    best = layer.kernel.name
    seen = []
    with KernelRegistry.use("reference"):
        thread = threading.Thread(target=lambda: seen.append(layer.kernel.name))
        thread.start()
        thread.join()
        assert layer.kernel.name == "reference"
    assert seen == [best]


def test_a_kernel_registered_later_is_found_at_once(own_registry: None) -> None:
    layer = BitLinear(16, 4).deploy()
    x = torch.randn(2, 16)
    y = layer(x)
    CountingKernel.calls = 0
    KernelRegistry.register("users_own", priority=1000)(CountingKernel)
    assert torch.equal(layer(x), y)
    assert CountingKernel.calls == 1
    assert KernelRegistry.get_kernel_for_config(CONFIG).name == "users_own"
    assert KernelRegistry.list_available_kernels()[0] == "users_own"


def test_taken_names_and_foreign_classes_are_refused(own_registry: None) -> None:
    with pytest.raises(
        ArgumentError, match=r"name is 'reference', expected another name: it is taken by .*ReferenceKernel"
    ):
        KernelRegistry.register("reference", priority=3)(CountingKernel)
    with pytest.raises(ArgumentError, match="expected a subclass of BitKernelBase"):
        KernelRegistry.register("other", priority=3)(dict)  # type: ignore[type-var]


def test_the_same_definition_may_be_run_again(own_registry: None) -> None:
    for _ in range(2):

        @KernelRegistry.register("notebook_cell", priority=5)
        class NotebookKernel(CountingKernel):
            pass

    assert KernelRegistry._kernels["notebook_cell"] is NotebookKernel


def test_explain_is_a_table_of_every_kernel() -> None:
    table = KernelRegistry.explain(CONFIG, device="cpu")
    assert table.count("chosen") == 1
    assert all(name in table for name in KernelRegistry._kernels)
    on_gpu = KernelRegistry.explain(CONFIG, device="cuda")
    assert "device is cuda, serves cpu" in on_gpu or "not built" in on_gpu
    with KernelRegistry.use("reference"):
        rows = {row.split()[0]: row for row in KernelRegistry.explain(CONFIG).splitlines()[1:]}
        assert rows["reference"].endswith("chosen")


def test_decisions_do_not_depend_on_values_or_batch() -> None:
    assert "rows" not in KernelRequest.__dataclass_fields__
    layer = BitLinear(16, 4).deploy()
    assert layer(torch.randn(1, 16)).shape == (1, 4)
    kernel = layer._kernel
    layer(torch.randn(70, 16))
    assert layer._kernel is kernel


def test_too_wide_layers_are_refused_with_the_reason() -> None:
    request = KernelRequest(CONFIG, "cpu", torch.float32, in_features=2**23 + 1, out_features=1)
    with pytest.raises(KernelNotFoundError, match="in_features is 8388609, int32 sums are exact up to 8388608"):
        KernelRegistry.resolve(request)


def test_environment_variable_forces_a_process() -> None:
    code = "from bitlayers import BitLinear; print(BitLinear(8, 8).deploy().kernel.name)"
    environment = {**os.environ, "BITLAB_KERNEL": "reference"}
    assert (
        subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True).stdout
        == "reference\n"
    )
    environment["BITLAB_KERNEL"] = "nonsense"
    code = "from bitlayers import BitLinear; BitLinear(8, 8).deploy().kernel"
    failed = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert "no kernel is named 'nonsense'" in failed.stderr


def test_a_machine_without_the_extension_warns_once_and_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extensions, "why_missing", lambda: "not built: no C++ compiler was found")
    extensions.warn_that_missing.cache_clear()
    with pytest.warns(
        ExtensionWarning, match=r"no C\+\+ compiler was found.*reference kernel serves.*build_extensions.py"
    ) as warned:
        assert KernelRegistry.get_kernel_for_config(CONFIG).name == "reference"
        assert KernelRegistry.get_kernel_for_config(CONFIG).name == "reference"
    assert len(warned) == 1
    assert "not built: no C++ compiler was found" in KernelRegistry.explain(CONFIG)


def test_a_gpu_without_the_extension_warns_once_and_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(extensions, "why_cuda_missing", lambda: "not built: nvcc was not found")
    extensions.warn_that_missing.cache_clear()
    monkeypatch.setattr(KernelRegistry._kernels["triton"], "unavailable_reason", lambda: "not installed")
    with pytest.warns(ExtensionWarning, match=r"CUDA kernels are missing \(not built: nvcc was not found\)") as warned:
        assert KernelRegistry.get_kernel_for_config(CONFIG, "cuda").name == "reference"
        assert KernelRegistry.get_kernel_for_config(CONFIG, "cuda").name == "reference"
    assert len(warned) == 1
    assert "cuda          100  not built: nvcc was not found" in KernelRegistry.explain(CONFIG, "cuda")


def test_a_cpu_without_the_instructions_gets_the_portable_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    from bitcore.kernels import cpu

    if extensions.why_missing():
        pytest.skip(str(extensions.why_missing()))
    real = cpu._why_not_here
    monkeypatch.setattr(
        cpu, "_why_not_here", lambda name: real(name) if name == "portable" else "this CPU lacks avx512f"
    )
    assert KernelRegistry.get_kernel_for_config(CONFIG).name == "portable"
    assert "this CPU lacks avx512f" in KernelRegistry.explain(CONFIG)
    with pytest.raises(KernelNotFoundError, match="this CPU lacks avx512f"):
        KernelRegistry.get_kernel_by_name("avx512_vnni", CONFIG)


@pytest.mark.parametrize("name", ["portable", "avx2"])
def test_environment_variable_chooses_a_lower_instruction_set(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if name not in KernelRegistry.list_available_kernels():
        pytest.skip(f"{name} cannot run here")
    monkeypatch.setenv("BITLAB_CPU_ISA", name)
    assert KernelRegistry.get_kernel_for_config(CONFIG).name == name
    assert KernelRegistry.get_kernel_for_config(UNALIGNED_GROUPS).name == "reference"
    monkeypatch.setenv("BITLAB_CPU_ISA", "avx9")
    with pytest.raises(KernelNotFoundError, match=r"BITLAB_CPU_ISA is 'avx9', expected one of .*portable on this CPU"):
        KernelRegistry.get_kernel_for_config(CONFIG)


def test_plugins_are_loaded_and_their_failures_shown(own_registry: None, monkeypatch: pytest.MonkeyPatch) -> None:
    plugins = [
        EntryPoint("good", "json:dumps", "bitlab.kernels"),
        EntryPoint("bad", "no_such_module:x", "bitlab.kernels"),
    ]
    monkeypatch.setattr(registry, "entry_points", lambda group: plugins if group == "bitlab.kernels" else [])
    monkeypatch.setattr(KernelRegistry, "_plugins_loaded", False)
    table = KernelRegistry.explain(CONFIG)
    assert "plugin bad" in table
    assert "ModuleNotFoundError: No module named 'no_such_module'" in table
    assert "plugin good" not in table


def test_a_kernel_must_say_how_it_multiplies() -> None:
    with pytest.raises(TypeError, match="abstract"):
        BitKernelBase(CONFIG)  # type: ignore[abstract]


def test_an_unfinished_kernel_is_a_row_and_never_chosen(own_registry: None) -> None:
    @KernelRegistry.register("unfinished", priority=1000)
    class UnfinishedKernel(BitKernelBase): ...

    assert "UnfinishedKernel does not define linear" in KernelRegistry.explain(CONFIG)
    assert KernelRegistry.get_kernel_for_config(CONFIG, device="meta").name == "reference"
    assert "unfinished" not in KernelRegistry.list_available_kernels()
    with pytest.raises(KernelNotFoundError, match="does not define linear"):
        KernelRegistry.get_kernel_by_name("unfinished", CONFIG)


def test_int8_weights_a_group_are_served_by_compiled_kernels_and_the_reference_alone() -> None:
    config = BitQuantConfig(weight_dtype="int8", weight_granularity="per_group")
    for device_type in ("cpu", "cuda"):
        request = KernelRequest(config, device_type, torch.float32)
        for name, kernel in KernelRegistry._kernels.items():
            here = name != "triton" and (name == "cuda") == (device_type == "cuda")
            assert (kernel.unsupported_reason(request) is None) == (here or name == "reference")


@pytest.mark.parametrize(
    ("capability", "built", "reason"),
    [
        ((7, 0), ("7.5",), "the GPU has compute capability 7.0, needs 7.5"),
        (
            (8, 0),
            ("9.0a",),
            "built for compute capability 9.0a, the GPU has 8.0; rebuild with TORCH_CUDA_ARCH_LIST=8.0",
        ),
        ((8, 0), ("8.6",), "built for compute capability 8.6, the GPU has 8.0"),
        ((9, 0), ("8.0", "10.0+PTX"), "built for compute capability 8.0, 10.0\\+PTX, the GPU has 9.0"),
        ((8, 9), ("8.6",), None),
        ((12, 0), ("9.0a", "10.0+PTX"), None),
        ((9, 0), ("9.0a",), None),
        ((10, 3), ("10.0f",), None),
        ((12, 0), ("10.0f+PTX",), "built for compute capability 10.0f\\+PTX, the GPU has 12.0"),
        ((8, 9), ("8.0+PTX",), None),
        ((9, 0), ("8.0+PTX",), "built for compute capability 8.0\\+PTX, the GPU has 9.0"),
        ((10, 0), ("8.6+PTX", "9.0a"), "built for compute capability 8.6\\+PTX, 9.0a, the GPU has 10.0"),
    ],
)
def test_a_gpu_that_the_cuda_kernels_are_not_for_is_named(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], built: tuple[str, ...], reason: str | None
) -> None:
    monkeypatch.setattr(extensions, "why_cuda_missing", lambda: None)
    monkeypatch.setattr(extensions, "cuda_architectures", lambda: built)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capability)
    found = CudaKernel.unavailable_reason()
    assert (found is None) == (reason is None)
    assert reason is None or re.match(reason, found or "")
