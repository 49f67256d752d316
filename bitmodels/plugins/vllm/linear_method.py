"""BitLabLinearMethod: packed weights and kernels of BitLab in a linear layer of vLLM."""

from typing import Any

import torch
from torch import Tensor, nn
from vllm.model_executor.layers.linear import LinearMethodBase, register_weight_loader_v2_supported_method
from vllm.model_executor.parameter import (
    BasevLLMParameter,
    ChannelQuantScaleParameter,
    GroupQuantScaleParameter,
    ModelWeightParameter,
    PerTensorScaleParameter,
)

from bitcore.config import BitQuantConfig
from bitcore.exceptions import ArgumentError, CheckpointError
from bitcore.kernels import BitKernelBase, KernelRegistry, KernelRequest
from bitcore.packed_weight import PackedWeight
from bitcore.packing import WEIGHTS_PER_BYTE, packed_columns


@register_weight_loader_v2_supported_method
class BitLabLinearMethod(LinearMethodBase):  # type: ignore[misc]  # vLLM is seldom installed beside
    """y = x @ (values * scale).T + bias on packed rows, for plain, fused and row- or column-parallel layers.

    A fused layer (q, k and v, say) holds the rows of its parts under each other and runs as one; scales of whole parts
    are given to their rows, which changes no bit of what each part gives.

    Raises:
        ArgumentError: weights have a zero point.
    """

    def __init__(self, quant_config: BitQuantConfig, prefix: str) -> None:
        if quant_config.weight_quantizer == "minmax":
            raise ArgumentError(f"{prefix}: weight_quantizer", "minmax", "one without a zero point, for vLLM")
        self.quant_config = quant_config
        self.prefix = prefix
        self.kernel: BitKernelBase | None = None  # chosen once the weights are there

    def create_weights(
        self,
        layer: nn.Module,
        input_size_per_partition: int,
        output_partition_sizes: list[int],
        input_size: int,
        output_size: int,
        params_dtype: torch.dtype,
        **extra_weight_attrs: Any,
    ) -> None:
        """Registers weight_packed uint8 [rows, bytes] and weight_scale float32: a part, a row, or a row and group each.

        Raises:
            ArgumentError: the layer's input is split over GPUs where each token has one scale, or not at whole bytes.
        """
        config, rows = self.quant_config, sum(output_partition_sizes)
        if input_size_per_partition != input_size:
            self._check_split(input_size_per_partition)
        loader = extra_weight_attrs["weight_loader"]
        columns = packed_columns(input_size_per_partition, config.packed_format)
        packed = torch.zeros(rows, columns, dtype=torch.uint8)
        layer.register_parameter(
            "weight_packed", ModelWeightParameter(data=packed, input_dim=1, output_dim=0, weight_loader=loader)
        )
        scale: BasevLLMParameter
        if config.weight_granularity == "per_tensor":
            scale = PerTensorScaleParameter(data=_unset(len(output_partition_sizes)), weight_loader=loader)
        elif config.weight_granularity == "per_channel":
            scale = ChannelQuantScaleParameter(data=_unset(rows), output_dim=0, weight_loader=loader)
        else:
            groups = -(-input_size_per_partition // config.group_size)
            data = _unset(rows, groups)
            scale = GroupQuantScaleParameter(data=data, input_dim=1, output_dim=0, weight_loader=loader)
        layer.register_parameter("weight_scale", scale)
        # The empty tensor that the transformers plug-in saves in place of one float weight.
        layer.register_parameter("weight", BasevLLMParameter(data=torch.empty(0, 0), weight_loader=self._refuse_floats))
        self.in_features, self.part_rows, self.dtype = input_size_per_partition, output_partition_sizes, params_dtype

    def process_weights_after_loading(self, layer: nn.Module) -> None:
        """Checks what was loaded, and chooses the kernel.

        Raises:
            CheckpointError: a tensor is missing or damaged.
            KernelNotFoundError: no kernel serves the layer here.
        """
        packed, scale = layer.get_parameter("weight_packed").data, layer.get_parameter("weight_scale").data
        config = self.quant_config
        if bool(scale.isnan().any()):
            raise CheckpointError(f"{self.prefix}: weight_scale is missing, or NaN")
        if config.weight_granularity == "per_tensor" and len(self.part_rows) > 1:
            config = config.model_copy(update={"weight_granularity": "per_channel"})
            scale = scale.repeat_interleave(torch.tensor(self.part_rows, device=scale.device))
        try:
            PackedWeight(packed, scale, None, self.in_features).check(config)
        except ArgumentError as error:
            raise CheckpointError(f"{self.prefix}: {error}") from error
        layer.weight_packed = nn.Parameter(packed, requires_grad=False)
        layer.weight_scale = nn.Parameter(scale, requires_grad=False)
        if "weight" in layer._parameters:
            del layer.weight
        request = KernelRequest(config, packed.device.type, self.dtype, self.in_features, packed.shape[0])
        self.kernel = KernelRegistry.resolve(request)

    def apply(self, layer: Any, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Maps x [..., in_features] to [..., rows] in x's dtype."""
        assert self.kernel is not None
        return self.kernel.linear(
            x, PackedWeight(layer.weight_packed, layer.weight_scale, None, self.in_features), bias
        )

    def _check_split(self, columns: int) -> None:
        config = self.quant_config
        if config.activation_dtype == "int8":
            expected = (
                "1 (or pipeline parallelism): each token has one activation scale, for the whole input of a layer"
            )
            raise ArgumentError(f"tensor_parallel_size of {self.prefix}", "more than 1", expected)
        whole = config.group_size if config.weight_granularity == "per_group" else 1
        for multiple in (whole, WEIGHTS_PER_BYTE[config.packed_format]):
            if columns % multiple != 0:
                raise ArgumentError(f"{self.prefix}: in_features of a GPU", columns, f"a multiple of {multiple}")

    def _refuse_floats(self, parameter: nn.Parameter, loaded_weight: Tensor, *_: Any) -> None:
        if loaded_weight.numel() > 0:
            shape = list(loaded_weight.shape)
            raise CheckpointError(f"{self.prefix} has a float weight of shape {shape}, expected a weight_packed")


def _unset(*shape: int) -> Tensor:
    """A scale that shows whether it was loaded."""
    return torch.full(shape, float("nan"), dtype=torch.float32)
