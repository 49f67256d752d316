"""The plug-in for vLLM: quantization "bitlab", registered by the entry point vllm.general_plugins."""

from importlib import import_module

__all__ = ["register"]


def register() -> None:
    """What vLLM calls in each of its processes. Once is as good as several times."""
    import_module("bitmodels.plugins.vllm.config")
