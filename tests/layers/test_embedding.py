import pytest
import torch
from torch import nn

from bitcore import BitQuantConfig
from bitcore.exceptions import ArgumentError, DtypeError, ShapeError
from bitcore.packed_weight import PackedWeight
from bitlayers import BitEmbedding

CONFIGS = [
    BitQuantConfig(),
    BitQuantConfig(weight_granularity="per_channel", storage_format="base3"),
    BitQuantConfig.int4(8),
    BitQuantConfig(weight_dtype="int8", weight_granularity="per_channel"),
    BitQuantConfig(weight_dtype="int4", weight_quantizer="minmax", weight_granularity="per_group", group_size=8),
]


@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_train_eval_and_deploy_give_the_quantized_rows(config: BitQuantConfig, dtype: torch.dtype) -> None:
    layer = BitEmbedding(13, 19, quant_config=config, dtype=dtype)
    indices = torch.randint(0, 13, (2, 3))
    trained = layer.train()(indices)
    evaluated = layer.eval()(indices)
    assert torch.equal(trained, evaluated)
    with torch.no_grad():
        assert torch.equal(layer(indices), evaluated)
    deployed = layer.deploy()(indices)
    assert torch.equal(deployed, evaluated)
    assert (deployed.shape, deployed.dtype) == ((2, 3, 19), dtype)


def test_gradients_reach_the_rows_that_were_read() -> None:
    layer = BitEmbedding(13, 4, padding_idx=0)
    layer(torch.tensor([0, 2, 2])).sum().backward()
    expected = torch.zeros(13, 4)
    expected[2] = 2.0
    assert torch.equal(layer.weight.grad, expected)


def test_from_dense_and_wrong_indices() -> None:
    dense = nn.Embedding(13, 4, padding_idx=1)
    layer = BitEmbedding.from_dense(dense, copy=False)
    assert layer.weight is dense.weight
    assert layer.padding_idx == 1
    with pytest.raises(DtypeError, match=r"indices is torch\.float32, expected an integer dtype"):
        layer(torch.zeros(2))
    assert layer.deploy()(torch.zeros(0, 3, dtype=torch.long)).shape == (0, 3, 4)


@pytest.mark.parametrize("options", [{"max_norm": 1.0}, {"scale_grad_by_freq": True}, {"sparse": True}], ids=str)
def test_options_that_quantized_rows_have_not_are_refused(options: dict[str, object]) -> None:
    (name,) = options
    with pytest.raises(ArgumentError, match=rf"nn.Embedding.{name} is .*, expected (None|False)"):
        BitEmbedding.from_dense(nn.Embedding(13, 4, **options))  # type: ignore[arg-type]


@pytest.mark.parametrize("state", ["train", "eval", "deployed"])
def test_an_index_beyond_the_table_is_refused(state: str) -> None:
    layer = BitEmbedding(13, 4, quant_config=BitQuantConfig(weight_granularity="per_channel")).train(state == "train")
    if state == "deployed":
        layer.deploy()
    with pytest.raises(IndexError):
        layer(torch.tensor([13]))


def test_only_the_rows_that_are_read_are_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    original = PackedWeight.values

    def watch(self: PackedWeight, config: BitQuantConfig) -> torch.Tensor:
        seen.append(self.packed.shape[0])
        return original(self, config)

    monkeypatch.setattr(PackedWeight, "values", watch)
    BitEmbedding(1000, 8).deploy()(torch.tensor([[3, 999, 3]]))
    assert seen == [3]


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_the_table_is_a_head_too(config: BitQuantConfig) -> None:
    config = config.model_copy(update={"activation_dtype": "float32"})
    layer = BitEmbedding(13, 19, quant_config=config)
    x = torch.randn(2, 3, 19)
    table = layer.train()(torch.arange(13)).detach()
    expected = x @ table.T
    for state in (layer, layer.eval(), layer.deploy()):
        torch.testing.assert_close(state.logits(x), expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(ShapeError, match=r"x is of shape \[2, 18\]"):
        layer.logits(torch.randn(2, 18))
    trained = BitEmbedding(13, 19, quant_config=config)
    trained.logits(x).sum().backward()
    assert trained.weight.grad is not None
