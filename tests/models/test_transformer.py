"""BitTransformer: its logits, its cache, padding, its life."""

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from transformers_of_all_kinds import KINDS, SIZES, TURNED, distance, make

from bitcore import BitQuantConfig
from bitcore.exceptions import ArgumentError, ConfigError, DtypeError, ShapeError
from bitcore.kernels import KernelRegistry
from bitlayers import BitEmbedding, BitLinear, assert_deploy_equal
from bitmodels import AutoBitModel
from bitmodels.rope import RopeConfig
from bitmodels.transformer import BitTransformerConfig, BitTransformerModel

every_kind = pytest.mark.parametrize("kind", KINDS)


@every_kind
def test_deploys_to_what_it_was_evaluated_with(kind: str) -> None:
    assert_deploy_equal(make(kind), (torch.randint(50, (2, 7)),))


@every_kind
def test_trains(kind: str) -> None:
    model = make(kind)
    ids = torch.randint(50, (2, 7))
    loss = F.cross_entropy(model(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


@every_kind
@pytest.mark.parametrize("deployed", [False, True])
def test_is_saved_and_loaded(kind: str, deployed: bool, tmp_path: Path) -> None:
    model = make(kind, BitQuantConfig(storage_format="base3")).bfloat16().eval()
    ids = torch.randint(50, (2, 7))
    expected = model(ids)
    (model.deploy() if deployed else model).save_pretrained(tmp_path)
    loaded = AutoBitModel.from_pretrained(tmp_path)
    assert isinstance(loaded, BitTransformerModel)
    assert loaded.config == model.config
    assert expected.dtype == torch.bfloat16
    assert torch.equal(loaded(ids), expected)


@every_kind
@torch.no_grad()
def test_every_kernel_gives_the_same_bits(kind: str) -> None:
    model = make(kind).deploy()
    # Floating-point activations of an int8 or int4 head: sums in each kernel's own order.
    run = model.model if model.config.head_dtype in ("int8", "int4") else model
    ids = torch.randint(50, (3, 9))
    with KernelRegistry.use("reference"):
        expected = run(ids)
    compared = []
    for name in KernelRegistry.list_available_kernels():
        kernel = KernelRegistry._kernels[name]
        if kernel.has_cpp_backend and "cpu" in (kernel.device_types or ()):
            for layer in model.modules():
                if isinstance(layer, BitLinear):
                    layer._kernel_name = name
                    layer._start_over()
            assert torch.equal(run(ids), expected), name
            compared.append(name)
    assert compared or "portable" not in KernelRegistry.list_available_kernels()


@every_kind
@pytest.mark.parametrize("parts", [[9], [4, 1, 1, 3], [1] * 9], ids=str)
@torch.no_grad()
def test_a_cache_gives_what_all_positions_give(kind: str, parts: list[int]) -> None:
    model = make(kind).deploy()
    ids = torch.randint(50, (2, 9))
    expected = model(ids)
    cache = model.new_cache(2, 9)
    got = torch.cat([model(part, cache=cache) for part in ids.split(parts, 1)], 1)
    assert cache.length == 9
    assert distance(got, expected) < TURNED
    cache.reset()
    assert distance(model(ids, cache=cache), expected) < TURNED


@every_kind
@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_padding_changes_nothing(kind: str, side: str) -> None:
    model = make(kind).deploy()
    ids = torch.randint(50, (1, 6))
    expected = model(ids)
    padding = torch.randint(50, (1, 3))
    mask = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1, 1]])
    padded = torch.cat([padding, ids], 1)
    if side == "right":
        padded, mask = padded.roll(-3, 1), mask.flip(1)
    got = model(padded, mask)[mask.bool()].unsqueeze(0)
    assert distance(got, expected) < TURNED
    cache = model.new_cache(1, 9)
    parts = [model(padded[:, begin:end], mask[:, :end], cache) for begin, end in ((0, 4), (4, 5), (5, 9))]
    got = torch.cat(parts, 1)[mask.bool()].unsqueeze(0)
    assert distance(got, expected) < TURNED


@torch.no_grad()
def test_a_sliding_window_hides_what_is_behind_it() -> None:
    model = make("sliding window", num_layers=1).deploy()
    ids = torch.randint(50, (1, 9))
    changed = ids.clone()
    changed[0, :5] = (changed[0, :5] + 1) % 50
    assert torch.equal(model(ids)[0, 8], model(changed)[0, 8])
    assert not torch.equal(model(ids)[0, 7], model(changed)[0, 7])


@torch.no_grad()
def test_heads_of_few_bits_are_close_to_the_float_head() -> None:
    model = make("llama", hidden_size=128).eval()
    ids = torch.randint(50, (2, 7))
    expected = model(ids)
    for head_dtype, tolerance in (("int8", 0.03), ("int4", 0.3)):
        other = make("llama", hidden_size=128, head_dtype=head_dtype)
        other.load_state_dict(model.state_dict())
        other.deploy()
        assert isinstance(other.model.embed_tokens, BitEmbedding)
        assert other.model.embed_tokens.weight is None
        assert (other(ids) - expected).norm() < tolerance * expected.norm()


def test_tied_embeddings_are_one_parameter() -> None:
    model = make("bitnet")
    assert model.lm_head is None
    assert not any(name.startswith("lm_head") for name in model.state_dict())
    hidden = torch.randn(2, 32)
    assert torch.equal(model.logits(hidden), hidden @ model.model.embed_tokens.weight.T)


def test_wrong_inputs_are_refused() -> None:
    model = make("llama").eval()
    with pytest.raises(ShapeError, match=r"input_ids is of shape \[3\], expected \[batch, length\]"):
        model(torch.arange(3))
    with pytest.raises(DtypeError, match=r"input_ids is torch\.float32"):
        model(torch.ones(1, 3))
    with pytest.raises(ShapeError, match=r"input_ids is 33 positions long .* at most max_length, 32: shorten"):
        model(torch.ones(1, 33, dtype=torch.long))
    cache = model.new_cache(1)
    model(torch.ones(1, 30, dtype=torch.long), cache=cache)
    with pytest.raises(ShapeError, match="input_ids is 33 positions long"):
        model(torch.ones(1, 3, dtype=torch.long), cache=cache)
    with pytest.raises(DtypeError, match=r"attention_mask is torch.float32, expected bool or an integer dtype"):
        model(torch.zeros(1, 31, dtype=torch.long), torch.zeros(1, 31))
    with pytest.raises(ShapeError, match=r"attention_mask is of shape \[1, 3\], expected \[1, 31\]"):
        model(torch.ones(1, 1, dtype=torch.long), torch.ones(1, 3), cache=cache)
    with pytest.raises(IndexError):
        model(torch.tensor([[50]]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_kv_heads": 3}, "num_kv_heads is 3, expected a divisor of num_heads, 4"),
        ({"hidden_size": 34}, "hidden_size is 34, expected a multiple of num_heads"),
        ({"head_dim": 7}, "head_dim is 7, expected an even number"),
        ({"hidden_size": 2**63}, "less than or equal to 8388608"),
        ({"head_dtype": "ternary", "tie_embeddings": True}, "expected tie_embeddings=False"),
        ({"head_dtype": "int2"}, "head_dtype"),
        ({"hidden": 3}, "hidden"),
        ({"rope": RopeConfig(rope_type="factors", frequency_factors=(1.0,))}, "rope has 1 frequency_factors"),
    ],
)
def test_wrong_configs_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        BitTransformerConfig(**{**SIZES, **changes})


@pytest.mark.parametrize("name", ["model.norm", "no.such", "lm_head"])
def test_only_projections_stay_in_full_precision(name: str) -> None:
    with pytest.raises(ArgumentError, match=f"config.full_precision is '{name}', expected the name of a BitLinear"):
        make("llama", full_precision=(name,))


@torch.no_grad()
def test_compiles_to_one_graph_and_exports() -> None:
    model = make("bitnet").deploy()
    ids = torch.randint(50, (2, 7))
    expected = model(ids)
    assert torch.equal(torch.compile(model, fullgraph=True, backend="aot_eager")(ids), expected)
    assert torch.equal(torch.export.export(model, (ids,)).module()(ids), expected)
