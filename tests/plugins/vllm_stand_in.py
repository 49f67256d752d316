"""What the plug-in uses of vLLM 0.33, after its documented signatures, for machines where vLLM is not installed.

Layers hold what vLLM's hold, take tensors of a checkpoint as its loader hands them over, and cut them for a GPU of a
tensor-parallel group.
"""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

CONFIGS: dict[str, type] = {}


def get_tensor_model_parallel_rank() -> int:
    return 0


def get_tensor_model_parallel_world_size() -> int:
    return 1


def register_quantization_config(quantization: str) -> Callable[[type], type]:
    def register(config: type) -> type:
        assert issubclass(config, QuantizationConfig)
        CONFIGS[quantization] = config
        return config

    return register


def get_quantization_config(quantization: str) -> type:
    return CONFIGS[quantization]


class QuantizeMethodBase:
    def process_weights_after_loading(self, layer: nn.Module) -> None:
        return


class QuantizationConfig:
    def __init__(self) -> None:
        self.packed_modules_mapping: dict[str, list[str]] = {}


class LinearMethodBase(QuantizeMethodBase):
    pass


class UnquantizedLinearMethod(LinearMethodBase):
    def create_weights(self, layer: nn.Module, *args: Any, **kwargs: Any) -> None:
        return


def register_weight_loader_v2_supported_method(method: type) -> type:
    return method


class BasevLLMParameter(nn.Parameter):
    def __new__(cls, data: Tensor, **_: Any) -> "BasevLLMParameter":
        return super().__new__(cls, data=data, requires_grad=False)

    def __init__(self, data: Tensor, weight_loader: Callable[..., None]) -> None:
        self.weight_loader = weight_loader
        self.rank = get_tensor_model_parallel_rank()

    def load(self, loaded_weight: Tensor, rows: slice, part: int, row_parallel: bool) -> None:
        assert self.data.shape == loaded_weight.shape
        self.data.copy_(loaded_weight)


class _Sharded(BasevLLMParameter):
    def __init__(self, output_dim: int, input_dim: int | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.output_dim, self.input_dim = output_dim, input_dim

    def load(self, loaded_weight: Tensor, rows: slice, part: int, row_parallel: bool) -> None:
        target = self.data[rows]
        if not row_parallel:
            loaded_weight = loaded_weight.narrow(0, self.rank * target.shape[0], target.shape[0])
        elif self.input_dim is not None:
            loaded_weight = loaded_weight.narrow(1, self.rank * target.shape[1], target.shape[1])
        assert target.shape == loaded_weight.shape
        target.copy_(loaded_weight)


class ModelWeightParameter(_Sharded):
    pass


class GroupQuantScaleParameter(_Sharded):
    pass


class ChannelQuantScaleParameter(_Sharded):
    pass


class PerTensorScaleParameter(BasevLLMParameter):
    def load(self, loaded_weight: Tensor, rows: slice, part: int, row_parallel: bool) -> None:
        assert loaded_weight.shape == (1,)
        self.data[part] = loaded_weight[0]


class LinearBase(nn.Module):
    row_parallel = False

    def __init__(
        self,
        input_size: int,
        output_size: int,
        bias: bool = True,
        *,
        output_sizes: list[int] | None = None,
        params_dtype: torch.dtype = torch.float32,
        quant_config: Any = None,
        prefix: str = "",
    ) -> None:
        super().__init__()
        ranks = get_tensor_model_parallel_world_size()
        sizes = [output_size] if output_sizes is None else output_sizes
        self.part_sizes = sizes if self.row_parallel else [size // ranks for size in sizes]
        self.quant_method = quant_config.get_quant_method(self, prefix)
        self.quant_method.create_weights(
            layer=self,
            input_size_per_partition=input_size // ranks if self.row_parallel else input_size,
            output_partition_sizes=self.part_sizes,
            input_size=input_size,
            output_size=sum(sizes),
            params_dtype=params_dtype,
            weight_loader=self.weight_loader_v2,
        )
        rows = sum(self.part_sizes)
        self.register_parameter("bias", None)
        if bias:
            self.bias = _Sharded(
                output_dim=0, data=torch.zeros(rows, dtype=params_dtype), weight_loader=self.weight_loader_v2
            )

    def weight_loader_v2(self, param: Any, loaded_weight: Tensor, shard_id: int | str | None = None) -> None:
        part = {"q": 0, "k": 1, "v": 2}.get(shard_id, shard_id or 0)
        begin = sum(self.part_sizes[:part])
        param.load(loaded_weight, slice(begin, begin + self.part_sizes[part]), part, self.row_parallel)

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        return self.quant_method.apply(self, x, self.bias), None


class ReplicatedLinear(LinearBase):
    pass


class ColumnParallelLinear(LinearBase):
    pass


class RowParallelLinear(LinearBase):
    row_parallel = True


class MergedColumnParallelLinear(LinearBase):
    def __init__(self, input_size: int, output_sizes: list[int], bias: bool = True, **kwargs: Any) -> None:
        super().__init__(input_size, sum(output_sizes), bias, output_sizes=output_sizes, **kwargs)


class QKVParallelLinear(LinearBase):
    def __init__(
        self, hidden_size: int, head_size: int, total_num_heads: int, total_num_kv_heads: int, bias: bool, **kwargs: Any
    ) -> None:
        sizes = [total_num_heads * head_size, *[total_num_kv_heads * head_size] * 2]
        super().__init__(hidden_size, sum(sizes), bias, output_sizes=sizes, **kwargs)


def modules() -> dict[str, ModuleType]:
    """The stand-ins under the names of vLLM's modules."""
    names = ["vllm", "vllm.model_executor", "vllm.model_executor.layers", "vllm.model_executor.layers.quantization"]
    leaves = ["layers.linear", "layers.quantization.base_config", "parameter"]
    made = {}
    for name in (*names, *(f"vllm.model_executor.{leaf}" for leaf in leaves)):
        made[name] = ModuleType(name)
        made[name].__dict__.update({key: value for key, value in globals().items() if not key.startswith("__")})
    return made
