"""Steps in a cache of fixed length: what is captured as a graph on a GPU gives the logits of the ordinary cache."""

import pytest
import torch
from torch import Tensor

from bitcore.exceptions import ArgumentError
from bitlayers.fixed_length_cache import FixedLengthCache
from bitmodels.decoding_graph import DecodingGraph
from bitmodels.fused_step import FusedStep
from bitmodels.transformer import BitTransformerConfig, BitTransformerModel
from bitmodels.transformer_cache import TransformerCache

on_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")


def model_of(device: str = "cpu", **options: object) -> BitTransformerModel:
    sizes = {"vocab_size": 50, "hidden_size": 64, "intermediate_size": 96, "num_layers": 2, "num_heads": 4}
    config = BitTransformerConfig(**{"num_kv_heads": 2, "max_length": 64, "sub_norm": True, **sizes, **options})
    return BitTransformerModel(config).eval().to(device)


def assert_near(logits: Tensor, expected: Tensor) -> None:
    """By their size: a sum in another order may turn an int8 activation, and with it logits by a step of it."""
    assert (logits - expected).norm() < 0.05 * expected.norm()


def filled(model: BitTransformerModel, prompt: Tensor) -> TransformerCache:
    cache = model.new_cache(len(prompt), 40)
    model.next_logits(prompt, None, cache)
    return cache


@torch.no_grad()
def test_a_fixed_length_cache_attends_to_the_positions_so_far() -> None:
    model, prompt, tokens = model_of(), torch.randint(50, (3, 7)), torch.randint(50, (3, 5))
    ordinary, fixed = filled(model, prompt), filled(model, prompt)
    for layer in fixed.layers:
        layer.keys[:, :, 20:], layer.values[:, :, 20:] = 1e3, 1e30  # a later position that is read shows
    for step in range(5):
        position, arrivals = torch.tensor([7 + step]), torch.zeros(12, dtype=torch.int32)
        caches = [FixedLengthCache(layer, position, arrivals) for layer in fixed.layers]
        token = tokens[:, step : step + 1]
        logits = model.logits(model.model.run(token, model.model.rotary(position), caches)[:, -1])
        assert_near(logits, model.next_logits(token, None, ordinary))


def test_a_cache_that_cannot_be_captured_is_refused() -> None:
    for model in (model_of(), model_of(sliding_window=8)):
        with pytest.raises(ArgumentError, match="KeyValueCache on a GPU"):
            DecodingGraph(model, model.new_cache(1, 20))
        assert not isinstance(model.steps_from(model.new_cache(1, 20)), DecodingGraph)


@on_a_gpu
@torch.no_grad()
def test_a_graph_gives_the_logits_of_the_ordinary_cache() -> None:
    model, prompt, tokens = model_of("cuda"), torch.randint(50, (3, 7)), torch.randint(50, (3, 33), device="cuda")
    ordinary, captured = filled(model, prompt), filled(model, prompt)
    graph = DecodingGraph(model, captured)
    for step in range(33):
        token = tokens[:, step : step + 1]
        assert_near(graph(token), model.next_logits(token, None, ordinary))
    assert captured.length == ordinary.length == 40
    with pytest.raises(ArgumentError, match="full: 40 positions"):
        graph(tokens[:, :1])


@on_a_gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("options", [{"sub_norm": True}, {"activation": "silu"}, {"mlp_bias": True, "num_kv_heads": 4}])
@torch.no_grad()
def test_a_fused_step_has_the_bits_of_its_parts(dtype: torch.dtype, options: dict[str, object]) -> None:
    model = model_of("cuda", **{"activation": "gelu", "num_kv_heads": 2, **options}).to(dtype)
    prompt, token = torch.randint(50, (1, 7)), torch.randint(50, (1, 1), device="cuda")
    position, arrivals = torch.tensor([7], device="cuda"), torch.zeros(4, dtype=torch.int32, device="cuda")
    rotary = model.model.rotary(position)
    steps = []
    for _ in range(2):
        caches = [FixedLengthCache(layer, position, arrivals) for layer in filled(model, prompt).layers]
        steps.append(caches)
    assert FusedStep.serves(model.model, torch.empty(1, 1, 64, device="cuda", dtype=dtype))
    hidden = FusedStep(model.model)(token, rotary, steps[0])
    assert torch.equal(hidden, model.model.run(token, rotary, steps[1]))
    for fused, parts in zip(*steps, strict=True):
        assert torch.equal(fused.keys, parts.keys)
        assert torch.equal(fused.values, parts.values)


@on_a_gpu
@torch.no_grad()
def test_what_cannot_be_fused_is_left_to_the_layers() -> None:
    example = torch.empty(1, 1, 64, device="cuda", dtype=torch.bfloat16)
    assert not FusedStep.serves(model_of("cuda").model, example)  # in float32
    for name in ("layers.1.mlp", "layers.0.self_attn.o_proj", "layers.1.mlp.ffn_sub_norm"):
        model = model_of("cuda").bfloat16().model
        assert FusedStep.serves(model, example)
        model.get_submodule(name).register_forward_hook(lambda *_: None)
        assert not FusedStep.serves(model, example)


@on_a_gpu
def test_generation_on_a_gpu_gives_the_same_tokens_with_a_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    model, prompt = model_of("cuda"), torch.randint(50, (2, 7))
    captured = model.generate(prompt, max_new_tokens=30)
    monkeypatch.setattr(BitTransformerModel, "steps_from", lambda *_: None)
    same = captured == model.generate(prompt, max_new_tokens=30)
    assert same[:, :10].all()  # the first tokens; a near tie may part the later ones
