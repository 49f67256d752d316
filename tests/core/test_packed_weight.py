import pytest
import torch

from bitcore import BitQuantConfig
from bitcore.packed_weight import PackedWeight

CONFIGS = [
    BitQuantConfig(),
    BitQuantConfig(weight_granularity="per_channel", storage_format="base3"),
    BitQuantConfig(weight_granularity="per_group", group_size=7),
    BitQuantConfig(weight_dtype="int4", weight_granularity="per_group", weight_quantizer="minmax", group_size=8),
    BitQuantConfig(weight_dtype="int8", weight_granularity="per_channel"),
]


@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize("shape", [(5, 33), (0, 7), (3, 1)], ids=str)
def test_on_the_meta_device_it_has_the_same_shapes(config: BitQuantConfig, shape: tuple[int, int]) -> None:
    expected = PackedWeight.from_float(torch.randn(shape), config)
    on_meta = PackedWeight.from_float(torch.empty(shape, device="meta"), config)
    for tensor, other in zip(expected[:3], on_meta[:3], strict=True):
        assert (tensor is None) == (other is None)
        if tensor is not None and other is not None:
            assert (tensor.shape, tensor.dtype, other.device.type) == (other.shape, other.dtype, "meta")
    assert on_meta.in_features == shape[1]
