"""assert_deploy_equal finds what differs, and nothing else."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from bitcore import BitQuantConfig
from bitcore.exceptions import ArgumentError, DeployMismatchError, LayerStateError
from bitlayers import BitLinear, assert_deploy_equal, deploy, linear_group


@dataclass
class Output:
    logits: Tensor
    hidden: tuple[Tensor, ...]
    note: str = "plain"


class Net(nn.Module):
    def __init__(self, middle: nn.Module | None = None) -> None:
        super().__init__()
        self.first = BitLinear(12, 8)
        self.middle = middle if middle is not None else nn.ReLU()
        self.left, self.right = BitLinear(8, 4), BitLinear(8, 4)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor, scale: float = 1.0) -> object:
        x = self.middle(self.first(x))
        left, right = linear_group((self.left, self.right), self.dropout(x))
        return {"out": Output(left * scale, (right, x)), "none": None, "number": 3, "nan": float("nan")}


class Unfaithful(nn.Module):
    """Gives something else once the model is deployed."""

    def __init__(self, change: object) -> None:
        super().__init__()
        self.change = change
        self.neighbour = BitLinear(8, 8)

    def forward(self, x: Tensor) -> object:
        return self.change(x) if self.neighbour.is_deployed else x  # type: ignore[operator]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("inputs", ["tensor", "tuple", "dict"])
def test_a_faithful_model_passes_and_is_left_alone(training: bool, inputs: str) -> None:
    model = Net().train(training)
    x = torch.randn(3, 12)
    assert_deploy_equal(model, {"tensor": x, "tuple": (x, 2.0), "dict": {"x": x, "scale": 2.0}}[inputs])
    assert model.training == training
    assert not model.first.is_deployed


def test_nan_is_equal_to_itself_and_random_numbers_are_the_same() -> None:
    class Noise(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.rand_like(x)

    model, x = Net(Noise()), torch.randn(3, 12)
    x[1, 2] = float("nan")
    state = torch.get_rng_state()
    assert_deploy_equal(model, x)
    assert torch.equal(torch.get_rng_state(), state)


def test_inputs_that_are_changed_in_place_are_copied() -> None:
    class Greedy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = BitLinear(12, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x.mul_(2))

    x = torch.randn(3, 12)
    before = x.clone()
    assert_deploy_equal(Greedy(), x)
    assert torch.equal(x, before)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x.clone().index_put_((torch.tensor(0), torch.tensor(1)), x[0, 1] + 1), "of 12 values, by up to"),
        (lambda x: x.double(), r"\['out'\]\.logits|torch.float64"),
        (lambda x: -x, "differs from eval"),
    ],
    ids=["a value", "dtype", "sign"],
)
def test_the_first_layer_that_differs_is_named(change: object, message: str) -> None:
    model = Net(Unfaithful(change))
    with pytest.raises(DeployMismatchError, match="first layer that differs: middle") as error:
        assert_deploy_equal(model, torch.randn(3, 12).abs() + 1)
    assert error.value.layer == "middle"
    assert isinstance(error.value, AssertionError)


def test_the_sentence_says_where_and_how_much() -> None:
    class Shift(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = BitLinear(4, 4)

        def forward(self, x: Tensor) -> list[object]:
            y = self.layer(x)
            if self.layer.is_deployed:
                y = y + torch.tensor([0.0, 2.0, 0.0, 0.0])
            return [{"y": y}]

    expected = (
        r"deployed, the model's output\[0\]\['y'\] differs from eval: 3 of 12 values, by up to 2 "
        r"\(first layer that differs: the model itself\)"
    )
    with pytest.raises(DeployMismatchError, match=expected):
        assert_deploy_equal(Shift(), torch.randn(3, 4))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (4, "output is 4, in eval 3"),
        (None, "output is None, in eval 3"),
        (torch.ones(2), r"output is torch.float32 \[2\] on cpu, in eval 3"),
        ({"y": 3}, r"output has the parts \[\"\['y'\]\"\], in eval \[''\]"),
    ],
)
def test_plain_values_and_structure_are_compared(wrong: object, message: str) -> None:
    class Number(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = BitLinear(4, 4)

        def forward(self, x: Tensor) -> object:
            return wrong if self.layer.is_deployed else 3

    with pytest.raises(DeployMismatchError, match=message):
        assert_deploy_equal(Number(), torch.randn(3, 4))


def test_what_a_state_dict_does_not_hold_is_found() -> None:
    class Forgetful(nn.Module):
        """Does not read its gain from the state dict."""

        def __init__(self) -> None:
            super().__init__()
            self.layer = BitLinear(4, 4)
            self.register_buffer("gain", torch.ones(1))

        def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: object) -> None:
            super()._load_from_state_dict({**state_dict, prefix + "gain": self.gain.clone()}, prefix, *args)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) * self.gain

    with pytest.raises(DeployMismatchError, match="saved and loaded, the model's output differs"):
        assert_deploy_equal(Forgetful(), torch.randn(3, 4))


def test_a_difference_of_grouped_layers_alone_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Net()
    kernel = type(model.first.eval().kernel)
    original = kernel.linear_group

    def wrong_when_deployed(self: object, x: Tensor, weights: list, biases: list) -> list[Tensor]:
        outputs = original(self, x, weights, biases)
        return [y + 1 for y in outputs] if not biases[0].requires_grad else outputs

    monkeypatch.setattr(kernel, "linear_group", wrong_when_deployed)
    with pytest.raises(DeployMismatchError, match="each layer by itself gives the same") as error:
        assert_deploy_equal(model, torch.randn(3, 12))
    assert error.value.layer is None


def test_what_cannot_be_compared_or_deployed_is_refused() -> None:
    class Strange(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = BitLinear(4, 4)

        def forward(self, x: Tensor) -> object:
            return [x, object()]

    with pytest.raises(ArgumentError, match=r"the model's output\[1\] is a object, expected tensors"):
        assert_deploy_equal(Strange(), torch.randn(3, 4))

    class First(nn.Sequential):
        def forward(self, x: Tensor) -> object:
            return super().forward(x)[0]

    with pytest.raises(DeployMismatchError, match="first layer that differs: 1"):  # what is inside may be anything
        assert_deploy_equal(First(Unfaithful(lambda x: x), Unfaithful(lambda x: -x), Strange()), torch.randn(3, 4) + 9)
    with pytest.raises(LayerStateError, match="no Bit layers"):
        assert_deploy_equal(nn.Linear(4, 4), torch.randn(3, 4))
    with pytest.raises(LayerStateError, match="deployed already"):
        assert_deploy_equal(deploy(BitLinear(4, 4)), torch.randn(3, 4))


@pytest.mark.parametrize(
    "config",
    [BitQuantConfig(weight_scale_dtype="bfloat16"), BitQuantConfig(ste="clipped"), BitQuantConfig.int4(8)],
    ids=str,
)
def test_configs(config: BitQuantConfig) -> None:
    assert_deploy_equal(nn.Sequential(BitLinear(12, 8, quant_config=config), nn.GELU()), torch.randn(3, 12))
