"""DecodingStep: bit for bit the logits of the model layer by layer, whatever the model, and nothing stale."""

import random
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from bitcore import BitQuantConfig, extensions
from bitcore.exceptions import ArgumentError, ShapeError
from bitcore.kernels import KernelRegistry
from bitlayers import BitLinear
from bitmodels.decoding_step import DecodingStep
from bitmodels.rope import RopeConfig
from bitmodels.transformer import BitTransformerConfig, BitTransformerModel
from bitmodels.transformer_cache import TransformerCache

pytestmark = pytest.mark.skipif(extensions.why_missing() is not None, reason=str(extensions.why_missing()))

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
QUANTIZATIONS = [
    BitQuantConfig(),
    BitQuantConfig(storage_format="base3", weight_granularity="per_channel"),
    BitQuantConfig(activation_dtype="float32"),
    BitQuantConfig.int4(group_size=16),
]
CPU_KERNELS = [name for name in KernelRegistry.list_available_kernels() if name in extensions.cpu_kernel_names()]


@pytest.fixture(autouse=True)
def same_number_of_threads_afterwards() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def model_of(
    dtype: torch.dtype = torch.float32, quant_config: BitQuantConfig | None = None, **options: object
) -> BitTransformerModel:
    sizes = {"vocab_size": 60, "hidden_size": 64, "intermediate_size": 112, "num_layers": 3, "num_heads": 4}
    config = BitTransformerConfig(**{**sizes, "max_length": 128, **options})
    model = BitTransformerModel(config, quant_config)
    for parameter in model.parameters():
        if parameter.dim() == 1:  # norms and biases
            nn.init.normal_(parameter, 0.5)
    return model.to(dtype).deploy()


def filled(model: BitTransformerModel, prompt: Tensor, room: int = 100) -> TransformerCache:
    cache = model.new_cache(len(prompt), room)
    model.next_logits(prompt, None, cache)
    return cache


@torch.no_grad()
def assert_same_steps(model: BitTransformerModel, batch: int = 1, past: int = 7, steps: int = 3) -> None:
    prompt = torch.randint(60, (batch, past))
    ordinary, cache = filled(model, prompt, past + steps), filled(model, prompt, past + steps)
    step = model.steps_from(cache)
    assert isinstance(step, DecodingStep)
    for _ in range(steps):
        token = torch.randint(60, (batch, 1))
        expected = model.next_logits(token, None, ordinary)
        logits = step(token)
        assert step._decoder is not None, "the ordinary way served"
        assert logits.dtype == expected.dtype
        assert torch.equal(logits, expected)
    assert cache.length == ordinary.length == past + steps
    for ours, theirs in zip(cache.layers, ordinary.layers, strict=True):
        assert ours.length == theirs.length
        assert torch.equal(ours.keys, theirs.keys)
        assert torch.equal(ours.values, theirs.values)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("quant_config", QUANTIZATIONS, ids=str)
@pytest.mark.parametrize("activation", ["relu2", "silu", "gelu"])
@pytest.mark.filterwarnings("ignore::bitcore.exceptions.PrecisionWarning")
def test_steps_are_bit_for_bit_those_of_the_layers(
    dtype: torch.dtype, quant_config: BitQuantConfig, activation: str
) -> None:
    for sub_norm in (False, True):
        options = {
            "num_kv_heads": random.choice([1, 2, 4]),
            "head_dim": random.choice([None, 2, 22, 34]),
            "intermediate_size": random.choice([16, 100, 177]),
            "attention_bias": random.random() < 0.5,
            "mlp_bias": random.random() < 0.5,
            "tie_embeddings": random.random() < 0.5,
            "head_dtype": random.choice(["float", "int8", "int4"]),
        }
        print(options)
        model = model_of(dtype, quant_config, activation=activation, sub_norm=sub_norm, **options)
        torch.set_num_threads(random.choice([1, 2, 3]))
        assert_same_steps(model, batch=random.choice([1, 2, 5]))


@pytest.mark.parametrize("head_dtype", ["float", "int8", "int4", "ternary"])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_head(head_dtype: str, tied: bool, dtype: torch.dtype) -> None:
    if not (head_dtype == "ternary" and tied):
        assert_same_steps(model_of(dtype, head_dtype=head_dtype, tie_embeddings=tied))


@pytest.mark.parametrize("kernel", CPU_KERNELS)
def test_every_kernel_of_this_machine(kernel: str) -> None:
    model = model_of(torch.bfloat16, sub_norm=True, activation="relu2", num_kv_heads=2, head_dtype="int8")
    with KernelRegistry.use(kernel):
        assert_same_steps(model, batch=2)


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
def test_any_number_of_threads(threads: int) -> None:
    sizes = {"hidden_size": 640, "intermediate_size": 1300, "num_heads": 10, "num_kv_heads": 5, "vocab_size": 3000}
    model = model_of(torch.bfloat16, sub_norm=True, activation="relu2", head_dtype="int8", **sizes)
    torch.set_num_threads(threads)
    assert_same_steps(model, steps=8)


@torch.no_grad()
def test_the_number_of_threads_may_change_between_steps() -> None:
    model, prompt = model_of(head_dtype="int8"), torch.randint(60, (1, 6))
    ordinary, cache = filled(model, prompt), filled(model, prompt)
    step = model.steps_from(cache)
    assert step is not None
    for threads in (1, 3, 2, 1):
        torch.set_num_threads(threads)
        token = torch.randint(60, (1, 1))
        assert torch.equal(step(token), model.next_logits(token, None, ordinary))


@pytest.mark.parametrize("kind", ["llama3", "yarn", "linear"])
def test_every_rotary_embedding_and_long_contexts(kind: str) -> None:
    original = None if kind == "linear" else 64
    rope = RopeConfig(rope_type=kind, factor=4.0, original_max_position_embeddings=original)
    model = model_of(torch.bfloat16, num_kv_heads=1, num_heads=18, head_dim=34, rope=rope, max_length=1200)
    assert_same_steps(model, past=random.randint(700, 1100))


def test_eval_mode_without_deploying_and_masters_that_change() -> None:
    config = BitTransformerConfig(vocab_size=60, hidden_size=32, intermediate_size=48, num_layers=2, num_heads=2)
    model = BitTransformerModel(config).eval()
    assert_same_steps(model)
    prompt = torch.randint(60, (1, 5))
    cache, other = filled(model, prompt), filled(model, prompt)
    step, token = model.steps_from(cache), torch.randint(60, (1, 1))
    assert step is not None
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight.mul_(-1.0)
        assert torch.equal(step(token), model.next_logits(token, None, other))


def replace_a_scale(model: BitTransformerModel, _: BitTransformerModel) -> None:
    layer = model.model.layers[0].mlp.down_proj
    layer.weight_scale = layer.weight_scale * 3


def replace_a_norm(model: BitTransformerModel, _: BitTransformerModel) -> None:
    model.model.layers[1].input_layernorm.weight = nn.Parameter(torch.randn(64).bfloat16())


def scale_in_place(model: BitTransformerModel, _: BitTransformerModel) -> None:
    model.model.layers[0].self_attn.v_proj.weight_scale.mul_(2.0)


def change_a_bias_in_place(model: BitTransformerModel, _: BitTransformerModel) -> None:
    model.model.layers[0].self_attn.k_proj.bias.add_(2.0)


def swap_data(model: BitTransformerModel, _: BitTransformerModel) -> None:
    model.model.norm.weight.data = torch.randn(64).bfloat16()


def load_a_state(model: BitTransformerModel, other: BitTransformerModel) -> None:
    model.load_state_dict(other.state_dict())


def load_and_assign_a_state(model: BitTransformerModel, other: BitTransformerModel) -> None:
    model.load_state_dict(other.state_dict(), assign=True)


def add_a_hook(model: BitTransformerModel, _: BitTransformerModel) -> None:
    model.model.layers[0].self_attn.o_proj.register_forward_hook(lambda *arguments: 2 * arguments[2])


def put_another_projection(model: BitTransformerModel, other: BitTransformerModel) -> None:
    model.model.layers[0].mlp.up_proj = other.model.layers[0].mlp.up_proj


def put_a_dense_projection(model: BitTransformerModel, other: BitTransformerModel) -> None:
    model.model.layers[0].mlp.up_proj = other.model.layers[1].mlp.up_proj


def put_another_norm(model: BitTransformerModel, other: BitTransformerModel) -> None:
    model.model.layers[2].mlp.ffn_sub_norm = other.model.layers[2].mlp.ffn_sub_norm


def put_another_layer(model: BitTransformerModel, other: BitTransformerModel) -> None:
    model.model.layers[2] = other.model.layers[0]


def put_another_head(model: BitTransformerModel, other: BitTransformerModel) -> None:
    model.lm_head = other.lm_head


CHANGES = [replace_a_scale, replace_a_norm, scale_in_place, change_a_bias_in_place, swap_data, load_a_state]
CHANGES += [load_and_assign_a_state, add_a_hook, put_another_projection, put_a_dense_projection, put_another_norm]
CHANGES += [put_another_layer, put_another_head]


@pytest.mark.parametrize("change", CHANGES)
@torch.no_grad()
def test_a_model_that_changes_between_steps_gives_nothing_stale(change: object) -> None:
    options = {"sub_norm": True, "attention_bias": True, "head_dtype": "int8"}
    model, other = model_of(torch.bfloat16, **options), model_of(torch.bfloat16, **options)
    if change is put_a_dense_projection:
        other.model.layers[1].mlp.up_proj = nn.Linear(64, 112, bias=False, dtype=torch.bfloat16)
    prompt = torch.randint(60, (2, 6))
    ordinary, cache = filled(model, prompt), filled(model, prompt)
    step = model.steps_from(cache)
    assert step is not None
    for _ in range(2):
        token = torch.randint(60, (2, 1))
        assert torch.equal(step(token), model.next_logits(token, None, ordinary))
    before = step(torch.ones(2, 1, dtype=torch.long)).clone()
    cache.length = ordinary.length
    for layer in cache.layers:
        layer.length = ordinary.length
    change(model, other)
    for token in (torch.ones(2, 1, dtype=torch.long), torch.randint(60, (2, 1))):
        expected = model.next_logits(token, None, ordinary)
        assert not torch.equal(expected, before)
        assert torch.equal(step(token), expected)


@torch.no_grad()
def test_a_cache_whose_tensors_are_exchanged_is_noticed() -> None:
    model, prompt = model_of(), torch.randint(60, (2, 6))
    ordinary, cache = filled(model, prompt), filled(model, prompt)
    step, token = model.steps_from(cache), torch.randint(60, (2, 1))
    assert step is not None
    step(token)
    model.next_logits(token, None, ordinary)
    for one in (ordinary, cache):
        for layer in one.layers:  # as a beam search does
            layer.keys, layer.values = layer.keys.flip(0), layer.values.flip(0)
    assert torch.equal(step(token), model.next_logits(token, None, ordinary))


@torch.no_grad()
def test_the_choice_of_kernels_is_followed() -> None:
    model, prompt = model_of(head_dtype="int8"), torch.randint(60, (1, 6))
    ordinary, cache = filled(model, prompt), filled(model, prompt)
    step = model.steps_from(cache)
    assert isinstance(step, DecodingStep)
    for kernel in (*CPU_KERNELS, "reference"):
        token = torch.randint(60, (1, 1))
        with KernelRegistry.use(kernel):
            assert torch.equal(step(token), model.next_logits(token, None, ordinary))
            assert (step._decoder is None) == (kernel == "reference")


def tiny(**options: object) -> BitTransformerModel:
    return model_of(**options)


def with_hook(model: BitTransformerModel) -> BitTransformerModel:
    model.model.layers[0].mlp.register_forward_pre_hook(lambda *_: None)
    return model


def with_own_forward(model: BitTransformerModel) -> BitTransformerModel:
    projection = model.model.layers[0].self_attn.q_proj
    projection.forward = lambda x: BitLinear.forward(projection, x) + 1  # type: ignore[method-assign]
    return model


def without_eps(model: BitTransformerModel) -> BitTransformerModel:
    model.model.norm.eps = None
    return model


class OtherHead(BitTransformerModel):
    def logits(self, hidden: Tensor) -> Tensor:
        return super().logits(hidden).tanh()


@pytest.mark.parametrize(
    ("make", "batch"),
    [
        (lambda: tiny(sliding_window=8), 1),
        (lambda: tiny(linear_norm_eps=1e-5), 1),
        (lambda: tiny(full_precision=("model.layers.1.mlp.up_proj",)), 1),
        (lambda: with_hook(tiny()), 1),
        (lambda: with_own_forward(tiny()), 1),
        (lambda: without_eps(tiny()), 1),
        (lambda: tiny(quant_config=BitQuantConfig.int4(group_size=15)), 1),
        (lambda: tiny(quant_config=BitQuantConfig(activation_granularity="per_tensor")), 2),
        (lambda: tiny(dtype=torch.float64), 1),
        (lambda: tiny(head_dim=258), 1),
        (lambda: tiny(intermediate_size=17000), 2),
        (lambda: OtherHead(tiny().config).deploy(), 1),
        (lambda: BitTransformerModel(tiny().config), 1),
    ],
)
def test_what_is_not_served_is_generated_as_before(make: object, batch: int) -> None:
    model = make()
    assert model.steps_from(model.new_cache(batch, 60)) is None
    if not model.training:
        model.generate(torch.randint(60, (batch, 4)), max_new_tokens=16)


def test_a_model_that_is_not_served_is_refused() -> None:
    model = tiny(sliding_window=8)
    with pytest.raises(ArgumentError, match="the cache a SlidingKeyValueCache"):
        DecodingStep(model, model.new_cache(1, 20))
    assert_same_steps(tiny(quant_config=BitQuantConfig(activation_granularity="per_tensor")))


def test_bad_input_is_told_as_by_the_model() -> None:
    model = model_of(head_dtype="int8")
    cache = filled(model, torch.randint(60, (2, 5)), 7)
    step = model.steps_from(cache)
    assert step is not None
    for token in (60, -1):
        with pytest.raises(IndexError):
            step(torch.tensor([[1], [token]]))
    assert cache.length == 5
    with pytest.raises(ShapeError):
        step(torch.ones(3, 1, dtype=torch.long))
    step(torch.ones(2, 1, dtype=torch.int32))
    step(torch.ones(2, 1, dtype=torch.long))
    with pytest.raises(ShapeError, match="full"):
        step(torch.ones(2, 1, dtype=torch.long))
    assert cache.length == 7


@pytest.mark.parametrize("activation", ["relu2", "silu"])
def test_generation_is_the_same_with_and_without_steps(activation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(torch.bfloat16, activation=activation, sub_norm=True, head_dtype="int8", num_kv_heads=2)
    for batch in (1, 3):
        prompt = torch.randint(60, (batch, 7))
        tokens = model.generate(prompt, max_new_tokens=40)
        with monkeypatch.context() as patch:
            patch.setattr(BitTransformerModel, "steps_from", lambda *_: None)
            assert torch.equal(tokens, model.generate(prompt, max_new_tokens=40))


def test_in_inference_mode() -> None:
    with torch.inference_mode():
        assert_same_steps(model_of(torch.bfloat16, activation="silu", sub_norm=True, head_dtype="int8"))
