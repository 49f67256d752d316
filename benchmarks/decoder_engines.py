"""The engines that bench_decoder.py compares: BitLab, transformers in bfloat16, llama.cpp. All weights are random."""

import ctypes
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from bitcore import BitQuantConfig
from bitlayers import BitLayer, BitLinear, linear_group
from bitmodels import export_gguf
from bitmodels.rope import RopeConfig
from bitmodels.transformer import BitTransformerConfig, BitTransformerModel

VOCAB_SIZE = 128256
GGML_TYPE_Q8_0, LLAMA_FTYPE_TQ2_0 = 8, 37


def model_config(num_layers: int, head_dtype: str, *, llama: bool = False) -> BitTransformerConfig:
    """The shape of BitNet b1.58 2B4T; `llama`: with SwiGLU and no sub-norms, which llama.cpp can run."""
    return BitTransformerConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=2560,
        intermediate_size=6912,
        num_layers=num_layers,
        num_heads=20,
        num_kv_heads=5,
        max_length=4096,
        activation="silu" if llama else "relu2",
        sub_norm=not llama,
        rope=RopeConfig(rope_theta=500000.0),
        tie_embeddings=True,
        head_dtype=head_dtype,
    )


def random_model(config: BitTransformerConfig, storage_format: str = "2bit") -> BitTransformerModel:
    """A deployed model in bfloat16, made in seconds: rows of packed weights are drawn from a pool of random ones."""
    quant_config = BitQuantConfig(storage_format=storage_format)
    with torch.device("meta"):
        model = BitTransformerModel(config, quant_config).deploy()
    model.to(torch.bfloat16).to_empty(device="cpu")
    for module in model.modules():
        if isinstance(module, BitLayer):
            rows = torch.randn(256, module.matrix_shape[1])
            packed, scale, _, _ = module._packed_weight().from_float(rows, module.quant_config)
            buffer = module.get_buffer("weight_packed")
            buffer.copy_(packed[torch.randint(len(packed), (len(buffer),))])
            module.get_buffer("weight_scale").copy_(scale.mean() * rows.shape[1] ** -0.5)
    for parameter in model.parameters():
        torch.nn.init.ones_(parameter) if parameter.dim() == 1 else torch.nn.init.normal_(parameter, std=0.02)
    return model.requires_grad_(False)


class Engine(ABC):
    """A model with a cache of its own."""

    name: str

    @abstractmethod
    def read(self, tokens: Tensor) -> None:
        """Computes the next token's logits after `tokens` [length] and those in the cache, and caches them."""

    @abstractmethod
    def forget_after(self, length: int) -> None:
        """Cuts the cache to its first `length` positions."""


class BitLabEngine(Engine):
    """A BitTransformerModel, by the calls that its `generate` makes."""

    def __init__(self, model: BitTransformerModel, name: str) -> None:
        self.model = model
        self.name = name
        self.cache = model.new_cache(1, 1024)
        self.step = model.steps_from(self.cache)

    def read(self, tokens: Tensor) -> None:
        input_ids = tokens.unsqueeze(0)
        if len(tokens) == 1 and self.cache.length > 0 and self.step is not None:
            self.step(input_ids)
        else:
            self.model.next_logits(input_ids, None, self.cache)

    def forget_after(self, length: int) -> None:
        self.cache.length = length
        for layer in self.cache.layers:
            layer.length = length

    def weight_bytes(self) -> int:
        """What is read for every token: packed weights, and a head in floating point."""
        packed = [tensor for name, tensor in self.model.named_buffers() if name.endswith("weight_packed")]
        floats = [tensor for tensor in self.model.parameters() if tensor.dim() == 2]
        return sum(tensor.nbytes for tensor in (*packed, *floats))

    def products(self) -> Callable[[], None]:
        """All matrix products of a token and nothing else: those of one width together, as one operator call."""
        by_width: dict[int, list[BitLinear]] = {}
        for module in self.model.model.layers.modules():
            if isinstance(module, BitLinear):
                by_width.setdefault(module.in_features, []).append(module)
        dtype = self.model.model.norm.weight.dtype
        inputs = {width: torch.randn(1, width).to(dtype) for width in by_width}
        hidden = torch.randn(1, self.model.config.hidden_size).to(dtype)

        def multiply() -> None:
            for width, layers in by_width.items():
                linear_group(layers, inputs[width])
            self.model.logits(hidden)

        return multiply


class TransformersEngine(Engine):
    """BitNetForCausalLM with dense bfloat16 weights: no layer quantizes anything, as fast as it gets there."""

    name = "transformers bf16"

    def __init__(self, config: BitTransformerConfig) -> None:
        from transformers import BitNetConfig, BitNetForCausalLM, DynamicCache  # noqa: PLC0415

        theirs = BitNetConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            num_key_value_heads=config.kv_heads,
            max_position_embeddings=config.max_length,
            tie_word_embeddings=True,
        )
        with torch.device("meta"):
            self.model = BitNetForCausalLM(theirs).to(torch.bfloat16)
        self.model.to_empty(device="cpu").eval()
        self.model.tie_weights()
        for tensor in self.model.parameters():
            torch.nn.init.ones_(tensor) if tensor.dim() == 1 else tensor.data.copy_(_repeated(tensor))
        self.model.model.rotary_emb = type(self.model.model.rotary_emb)(theirs)  # its frequencies are no parameters
        self.cache = DynamicCache(config=theirs)

    def read(self, tokens: Tensor) -> None:
        self.model(tokens.unsqueeze(0), past_key_values=self.cache, use_cache=True, logits_to_keep=1)

    def forget_after(self, length: int) -> None:
        surplus = self.cache.get_seq_length() - length
        if surplus > 0:
            self.cache.crop(-surplus)


def _repeated(tensor: Tensor) -> Tensor:
    return (torch.randn(1, tensor.shape[1]) * tensor.shape[1] ** -0.5).to(tensor.dtype).expand_as(tensor)


class LlamaCppEngine(Engine):
    """llama.cpp on its llama architecture, TQ2_0 with a Q8_0 head, through the package llama-cpp-python."""

    name = "llama.cpp TQ2_0"

    def __init__(self, config: BitTransformerConfig, directory: Path, threads: int) -> None:
        import llama_cpp  # noqa: PLC0415

        self.package: ModuleType = llama_cpp
        self.log = llama_cpp.llama_log_callback(lambda *_: None)
        llama_cpp.llama_log_set(self.log, None)
        exported, quantized = directory / "float_head.gguf", directory / "model.gguf"
        export_gguf(random_model(config), exported, type="TQ2_0")
        parameters = llama_cpp.llama_model_quantize_default_params()
        parameters.ftype, parameters.nthread = LLAMA_FTYPE_TQ2_0, threads
        parameters.token_embedding_type = parameters.output_tensor_type = GGML_TYPE_Q8_0
        llama_cpp.llama_model_quantize(str(exported).encode(), str(quantized).encode(), ctypes.byref(parameters))
        exported.unlink()
        llama_cpp.llama_backend_init()
        self.model = llama_cpp.llama_model_load_from_file(
            str(quantized).encode(), llama_cpp.llama_model_default_params()
        )
        options = llama_cpp.llama_context_default_params()
        options.n_ctx, options.n_batch, options.n_ubatch = 1024, 1024, 512
        options.n_threads = options.n_threads_batch = threads
        self.context = llama_cpp.llama_init_from_model(self.model, options)

    def read(self, tokens: Tensor) -> None:
        array = (ctypes.c_int32 * len(tokens))(*tokens.tolist())
        batch = self.package.llama_batch_get_one(array, len(tokens))
        if self.package.llama_decode(self.context, batch) != 0:
            raise RuntimeError("llama_decode failed")
        self.package.llama_synchronize(self.context)

    def forget_after(self, length: int) -> None:
        memory = self.package.llama_get_memory(self.context)
        self.package.llama_memory_seq_rm(memory, 0, length, -1)
