"""Layers: torch.nn modules with quantized weights, and the tools that put them into a model."""

from torch.nn import RMSNorm

from bitlayers.attention import BitAttention
from bitlayers.base import BitLayer
from bitlayers.conv import BitConv2d
from bitlayers.convert import convert, deploy
from bitlayers.deploy_equal import assert_deploy_equal
from bitlayers.embedding import BitEmbedding
from bitlayers.feed_forward import BitFeedForward, relu_squared
from bitlayers.kernel_check import KernelCheck, check_kernels
from bitlayers.key_value_cache import KeyValueCache
from bitlayers.linear import BitLinear
from bitlayers.linear_group import linear_group
from bitlayers.registry import LAYER_REGISTRY, register_layer
from bitlayers.report import MemoryReport, memory_report
from bitlayers.sliding_key_value_cache import SlidingKeyValueCache
from bitlayers.ternary_linear import TernaryLinear

__all__ = [
    "LAYER_REGISTRY",
    "BitAttention",
    "BitConv2d",
    "BitEmbedding",
    "BitFeedForward",
    "BitLayer",
    "BitLinear",
    "KernelCheck",
    "KeyValueCache",
    "MemoryReport",
    "RMSNorm",
    "SlidingKeyValueCache",
    "TernaryLinear",
    "assert_deploy_equal",
    "check_kernels",
    "convert",
    "deploy",
    "linear_group",
    "memory_report",
    "register_layer",
    "relu_squared",
]
