"""Prebuilt models. Every module of this package is imported, so a new file with a @register_model is a new model."""

from importlib import import_module
from pkgutil import iter_modules

from bitmodels.auto import AutoBitModel
from bitmodels.base import BitModelBase, BitModelConfig
from bitmodels.gguf_export import export_gguf
from bitmodels.hugging_face_export import export_hf
from bitmodels.registry import MODEL_REGISTRY, register_model

__all__ = [
    "MODEL_REGISTRY",
    "AutoBitModel",
    "BitModelBase",
    "BitModelConfig",
    "export_gguf",
    "export_hf",
    "register_model",
]

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
