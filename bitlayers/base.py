"""BitLayer: the train / eval / deploy life and the state dict that all Bit layers share.

training   `weight` (float master)                        multiplies fake-quantized values, gradients to the master;
                                                          below a `quantization_lambda` of 1, values in between
eval       `weight`, and its packed form made on demand   best kernel; kept until the master changes or train()
deployed   `weight_packed`, `weight_scale`                best kernel; no master, inference only, for good
"""

from contextlib import suppress
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import Self

from bitcore.checks import check_finite, check_positive, config_or_default
from bitcore.config import BitQuantConfig
from bitcore.exceptions import (
    BitLabError,
    CheckpointError,
    DtypeError,
    KernelNotFoundError,
    LayerStateError,
    ShapeError,
)
from bitcore.kernels import BitKernelBase, KernelRegistry, KernelRequest
from bitcore.packed_weight import PackedWeight
from bitcore.quantizers import quantizer_for
from bitlayers.changes import CountsChanges
from bitlayers.fused_optimizers import notice_fused_steps

PACKED_NAMES = ("weight_packed", "weight_scale", "weight_zero_point")


class BitLayer(CountsChanges, nn.Module):
    """A layer whose `weight`, read as a matrix [rows, columns], is quantized. First of a layer's bases."""

    dense_type: ClassVar[type[nn.Module] | None] = None  # what `convert` replaces by this layer

    quantize: bool = True  # False: the layer computes what its dense type does and cannot be deployed
    frozen: bool = False  # True lets train() leave a deployed layer as it is, for adapters that are trained around it
    quantization_lambda: float = 1.0  # of training alone, 0 to 1 (training.QuantizationWarmup); eval is always at 1
    quant_config: BitQuantConfig
    weight: Any  # nn.Parameter, or None once deployed
    bias: Any  # nn.Parameter, or None

    def _init_quantization(self, quant_config: BitQuantConfig | None) -> None:
        """Called by a layer's __init__ once `weight` exists."""
        self.quant_config = config_or_default(quant_config)
        self._kernel_name: str | None = None  # forces a kernel for this layer
        self._start_over()

    def _start_over(self) -> None:
        """Drops what was made of a state that has changed, and decides on a kernel if the layer is ready to run."""
        self._packed_master: tuple[PackedWeight, Tensor, tuple[int, int]] | None = None
        self._packed_buffers: PackedWeight | None = None
        self._kernel: BitKernelBase | None = None
        self._kernel_dtype: torch.dtype | None = None
        self._kernel_decision: object | None = None
        CountsChanges.changes += 1
        with suppress(KernelNotFoundError):  # told at the first call, when the input's dtype is known
            self._kernel_for(self._own_dtype())

    @classmethod
    def from_dense(cls, dense: Any, quant_config: BitQuantConfig | None = None, *, copy: bool = True) -> Self:
        """The Bit layer with the weights of `dense` (a `dense_type`): copied, or with copy=False the same ones."""
        raise TypeError(f"{cls.__name__} replaces no dense layer")

    # Shape of the weight as a matrix

    @property
    def _columns(self) -> int:
        """Columns of the weight as a matrix: K, the length of one dot product."""
        raise TypeError(f"{type(self).__name__} must define _columns")

    @property
    def _rows(self) -> int:
        """Rows of the weight as a matrix: out_features, out_channels or num_embeddings."""
        weight = self._buffers["weight_packed"] if self.is_deployed else self.weight
        assert weight is not None
        return weight.shape[0]

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """The weight's shape as a matrix: output features (rows of a table), and weights of one dot product."""
        return self._rows, self._columns

    def _master_matrix(self) -> Tensor:
        """The float master as [rows, columns]."""
        if self.weight is None:
            raise LayerStateError(f"{type(self).__name__} is deployed and has no master weight")
        matrix: Tensor = self.weight.reshape(-1, self._columns)
        return matrix

    # Train, eval, deploy

    @property
    def is_deployed(self) -> bool:
        """Whether the master weight is gone and only packed weights are left."""
        return "weight_packed" in self._buffers

    def train(self, mode: bool = True) -> Self:
        """As nn.Module.train. Raises LayerStateError for mode=True after deploy: there is no master weight to train.

        A deployed layer that is `frozen` stays in eval mode.
        """
        if mode and self.is_deployed:
            if self.frozen:
                return self
            raise LayerStateError(
                f"{type(self).__name__} is deployed: it has no master weight to train. "
                "Load the training checkpoint into a new model"
            )
        super().train(mode)
        self._start_over()
        return self

    def deploy(self) -> Self:
        """Drops the master weight: packed weight, scale and bias stay. Inference only, for good. Returns self.

        Raises:
            LayerStateError: the layer is deployed already.
            QuantizationError: a weight is NaN or infinite; the layer stays as it was.
        """
        if self.is_deployed:
            raise LayerStateError(f"{type(self).__name__} is deployed already")
        if not self.quantize:
            raise LayerStateError(f"{type(self).__name__} has quantize=False: there is nothing to pack")
        self._become_deployed(PackedWeight.from_float(self._master_matrix(), self.quant_config))
        return self

    def deploy_packed(self, packed: PackedWeight, quant_config: BitQuantConfig) -> Self:
        """`deploy` with weights that are packed already, as `quant_config` says: the master weight is not looked at.

        Raises:
            LayerStateError: the layer is deployed already.
            ShapeError: the packed weight is of another shape than the layer's.
            ShapeError, DtypeError, DeviceError, ArgumentError: bytes, scale or zero point are not as the config says.
            QuantizationError: a scale is NaN, infinite or not above zero.
        """
        if self.is_deployed:
            raise LayerStateError(f"{type(self).__name__} is deployed already")
        shape = (packed.packed.shape[0], packed.in_features)
        if shape != self.matrix_shape:
            raise ShapeError("packed", f"of shape {list(shape)}", f"{list(self.matrix_shape)}")
        packed.check_layout(quant_config)
        check_positive("weight_scale", packed.scale)
        self.quant_config = quant_config
        self._become_deployed(packed)
        return self

    def _become_deployed(self, packed: PackedWeight) -> None:
        self.register_parameter("weight", None)
        for name, tensor in zip(PACKED_NAMES, packed[:3], strict=True):
            if tensor is not None:
                self.register_buffer(name, tensor)
        if self.bias is not None:
            self.bias.requires_grad_(False)
        self.eval()

    # Weights

    def _packed_weight(self) -> PackedWeight:
        """The packed weight: the buffers if deployed, else made from the master and kept while the master is the same.

        A change is seen by the tensor's version counter. Writing through `weight.data` leaves that alone, so afterwards
        eval() has to be called again.
        """
        buffers: dict[str, Any] = self._buffers
        if "weight_packed" in buffers:
            kept = self._packed_buffers
            if kept is None or kept[0] is not buffers["weight_packed"] or kept[1] is not buffers["weight_scale"]:
                kept = PackedWeight(
                    buffers["weight_packed"], buffers["weight_scale"], buffers.get("weight_zero_point"), self._columns
                )
                if not torch.compiler.is_compiling():
                    self._packed_buffers = kept
            return kept
        master = self.weight
        if torch.compiler.is_compiling() or master.is_inference():  # neither can tell whether the master has changed
            return PackedWeight.from_float(self._master_matrix(), self.quant_config)
        version = (master._version, master.data_ptr())
        if self._packed_master is None or self._packed_master[1] is not master or self._packed_master[2] != version:
            notice_fused_steps()
            self._packed_master = (PackedWeight.from_float(self._master_matrix(), self.quant_config), master, version)
        return self._packed_master[0]

    def get_quantized_weight(self) -> tuple[Tensor, Tensor]:
        """(int8 values [rows, columns], float32 scale), as deployed or as the master quantizes now.

        Raises:
            QuantizationError: a master weight is NaN or infinite.
        """
        if not self.is_deployed:
            check_finite("weight", self._master_matrix())
            values, scale, _ = quantizer_for(self.quant_config).quantize_weight(self._master_matrix().detach())
            return values, scale
        packed = self._packed_weight()
        return packed.values(self.quant_config), packed.scale

    @property
    def qweight(self) -> Tensor:
        """The int8 values [rows, columns], made on demand."""
        return self.get_quantized_weight()[0]

    @property
    def qweight_scale(self) -> Tensor:
        """The float32 scale of `qweight`."""
        return self.get_quantized_weight()[1]

    # Kernel

    @property
    def kernel(self) -> BitKernelBase:
        """The kernel that serves inputs of the layer's own dtype now."""
        return self._kernel_for(self._own_dtype())

    def _weight_device(self) -> torch.device:
        weight = self._buffers["weight_packed"] if self.is_deployed else self.weight
        assert weight is not None
        return weight.device

    def _own_dtype(self) -> torch.dtype:
        """The dtype of the master weight; once that is gone, of the bias, else float32."""
        parameter = self.weight if self.weight is not None else self.bias
        return torch.float32 if parameter is None else parameter.dtype

    def _kernel_for(self, dtype: torch.dtype) -> BitKernelBase:
        """The kernel for inputs of `dtype`, decided again when device, dtype or choice of kernels changes."""
        kernel = self._kernel
        if kernel is not None and self._kernel_dtype is dtype and self._kernel_decision is KernelRegistry.decisions_of:
            return kernel
        return self._decide_kernel(dtype)

    def _decide_kernel(self, dtype: torch.dtype) -> BitKernelBase:
        if torch.compiler.is_compiling() and self._kernel is not None:
            # A decision cannot be traced: a compiled graph keeps the kernel of eval(), deploy() or the last move.
            if self._kernel.dtypes is None or dtype in self._kernel.dtypes:
                return self._kernel
        if not dtype.is_floating_point:
            raise DtypeError("x", dtype, "a floating-point dtype")
        device_type = self._weight_device().type
        request = KernelRequest(self.quant_config, device_type, dtype, self._columns, self._rows)
        kernel = KernelRegistry.resolve(request, forced=self._kernel_name)
        if KernelRegistry.decisions_of is not None:
            self._kernel, self._kernel_dtype, self._kernel_decision = kernel, dtype, KernelRegistry.decisions_of
        return kernel

    def _training_kernel(self, x: Tensor) -> BitKernelBase | None:
        """The kernel that may train on `x`; training needs none."""
        try:
            return self._kernel_for(x.dtype)
        except KernelNotFoundError:
            return None

    # State

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        """Moves and casts as nn.Module does, but the scale stays float32: `.half()` must not change the result."""
        scale = self._buffers.get("weight_scale")
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        moved = self._buffers.get("weight_scale")
        if scale is not None and moved is not None and moved.dtype != torch.float32:
            self._buffers["weight_scale"] = scale.to(moved.device)
        self._start_over()
        return self

    def __getstate__(self) -> dict[str, Any]:
        """For copy and pickle: without what can be made again."""
        return {**self.__dict__, "_packed_master": None, "_packed_buffers": None, "_kernel": None}

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Loads a training state (`weight`) or a deployed one (`weight_packed`, `weight_scale`) into either.

        Raises:
            CheckpointError: a packed state for a layer that needs its master weight, or packed bytes that are damaged.
                The layer stays as it was.
        """
        names = {name: prefix + name for name in ("weight", *PACKED_NAMES)}
        has_master = names["weight"] in state_dict
        has_packed = names["weight_packed"] in state_dict
        own = {key: value for key, value in state_dict.items() if key not in names.values()}
        try:
            if self.is_deployed and has_packed:
                packed = self._packed_from(state_dict, names)
            elif self.is_deployed and has_master:
                packed = PackedWeight.from_float(
                    state_dict[names["weight"]].reshape(-1, self._columns), self.quant_config
                )
            elif has_packed and not has_master:
                raise CheckpointError(
                    f"{names['weight_packed']} is a deployed layer's state, expected {names['weight']}: packed weights "
                    "cannot be trained. Call deploy() on this model before loading, or load the training checkpoint"
                )
            else:
                packed = None
        except CheckpointError:
            raise
        except BitLabError as error:
            raise CheckpointError(f"{prefix.rstrip('.') or type(self).__name__}: {error}") from error
        if packed is not None:
            own.update(
                {
                    names[name]: tensor
                    for name, tensor in zip(PACKED_NAMES, packed[:3], strict=True)
                    if tensor is not None
                }
            )
        elif has_master:
            own[names["weight"]] = state_dict[names["weight"]]
        super()._load_from_state_dict(own, prefix, *args)
        self._start_over()

    def _packed_from(self, state_dict: dict[str, Any], names: dict[str, str]) -> PackedWeight:
        missing = [names[name] for name in PACKED_NAMES if name in self._buffers and names[name] not in state_dict]
        if missing:
            raise CheckpointError(f"{', '.join(missing)} is missing beside {names['weight_packed']}")
        tensors: list[Any] = [state_dict.get(names[name]) for name in PACKED_NAMES]
        for name, tensor in zip(PACKED_NAMES, tensors, strict=True):
            own = self._buffers.get(name)
            if own is not None and tensor is not None and tensor.shape != own.shape:
                raise CheckpointError(f"{names[name]} is of shape {list(tensor.shape)}, expected {list(own.shape)}")
        packed = PackedWeight(tensors[0], tensors[1].float(), tensors[2], self._columns)
        packed.check(self.quant_config)
        return packed

    def packed_bytes(self) -> int:
        """Bytes of packed weight, scale and zero point: those held if deployed, else those that deploy would leave."""
        if not self.is_deployed:
            master = self._master_matrix()
            with torch.device("meta"):
                packed = PackedWeight.from_float(torch.empty(master.shape), self.quant_config)
        else:
            packed = self._packed_weight()
        return sum(tensor.nbytes for tensor in packed[:3] if tensor is not None)
