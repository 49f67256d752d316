"""assert_deploy_equal: proof that a model deploys to exactly what it was evaluated with."""

from collections.abc import Mapping
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bitcore.exceptions import ArgumentError, DeployMismatchError
from bitlayers.convert import deploy
from bitlayers.nested import leaves

Leaves = list[tuple[str, object]]
PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size)


def assert_deploy_equal(model: nn.Module, inputs: Any) -> None:
    """Asserts that deploying `model`, and then saving and loading it, changes no bit of what it gives for `inputs`.

    `model` is left alone: copies are evaluated, deployed, and loaded from the deployed one's state dict into erased
    tensors, each called without gradients, with inputs of its own and the same random seed.

    Args:
        model: holds Bit layers; in training or eval mode.
        inputs: a tuple of positional arguments, a dict of keyword arguments, or one argument.

    Raises:
        DeployMismatchError: an output differs; the message says where, and names the first layer that differs.
        ArgumentError: the model gives something else than tensors and plain values in tuples, lists, dicts and
            dataclasses.
        LayerStateError, QuantizationError: as `deploy`.
    """
    evaluated = deepcopy(model).eval()
    deployed = deploy(deepcopy(model))
    loaded = deepcopy(deployed)
    state = deepcopy(deployed.state_dict())
    with torch.no_grad():
        for tensor in loaded.state_dict().values():
            if isinstance(tensor, Tensor):
                tensor.zero_()
    loaded.load_state_dict(state)

    expected = _run(evaluated, inputs)
    for path, leaf in expected:
        if not isinstance(leaf, (Tensor, *PLAIN)):
            raise ArgumentError(f"the model's output{path}", f"a {type(leaf).__name__}", "tensors and plain values")
    for what, candidate in (("deployed", deployed), ("saved and loaded", loaded)):
        difference = _difference(expected, _run(candidate, inputs))
        if difference is not None:
            layer = _first_layer(_outputs(evaluated, inputs), _outputs(candidate, inputs))
            first = "each layer by itself gives the same" if layer is None else f"first layer that differs: {layer}"
            raise DeployMismatchError(f"{what}, the model's output{difference} ({first})", layer)


def _run(model: nn.Module, inputs: Any) -> Leaves:
    """The leaves of what `model` gives."""
    inputs = deepcopy(inputs)
    devices = {tensor.device.index for tensor in (*model.parameters(), *model.buffers()) if tensor.is_cuda}
    with torch.no_grad(), torch.random.fork_rng(list(devices)):
        torch.manual_seed(0)
        if isinstance(inputs, Mapping):
            output = model(**inputs)
        else:
            output = model(*inputs) if isinstance(inputs, tuple) else model(inputs)
    return _kept(output)


def _outputs(model: nn.Module, inputs: Any) -> list[tuple[str, Leaves]]:
    """The name and output of each module that is called, inner ones before those around them."""
    called: list[tuple[str, Leaves]] = []

    def remember(name: str, module: nn.Module, args: object, output: object) -> None:
        called.append((name or "the model itself", _kept(output)))

    handles = [module.register_forward_hook(partial(remember, name)) for name, module in model.named_modules()]
    try:
        _run(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return called


def _first_layer(expected: list[tuple[str, Leaves]], got: list[tuple[str, Leaves]]) -> str | None:
    for (name, output), (other_name, other_output) in zip(expected, got, strict=False):
        if name != other_name or _difference(output, other_output) is not None:
            return other_name
    return None


def _kept(output: object) -> Leaves:
    return [(path, leaf.clone() if isinstance(leaf, Tensor) else leaf) for path, leaf in leaves(output)]


def _difference(expected: Leaves, got: Leaves) -> str | None:
    """A sentence on the first tensor or plain value that differs, beginning with its path, or None."""
    if [path for path, _ in expected] != [path for path, _ in got]:
        return f" has the parts {[path for path, _ in got]}, in eval {[path for path, _ in expected]}"
    for (path, a), (_, b) in zip(expected, got, strict=True):
        if _kind(a) != _kind(b):
            return f"{path} is {_kind(b)}, in eval {_kind(a)}"
        if isinstance(a, Tensor) and isinstance(b, Tensor) and not torch.equal(_bits(a), _bits(b)):
            return f"{path} differs from eval: {_size_of_difference(a, b)}"
    return None


def _bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def _kind(leaf: object) -> str:
    """All of a plain value; of a tensor what is not in its bits."""
    if isinstance(leaf, Tensor):
        return f"{leaf.dtype} {list(leaf.shape)} on {leaf.device}"
    return repr(leaf) if isinstance(leaf, PLAIN) else type(leaf).__name__


def _size_of_difference(a: Tensor, b: Tensor) -> str:
    differs = (a != b) & ~(a.isnan() & b.isnan())
    largest = (a.double() - b.double()).abs()[differs].max().item() if bool(differs.any()) else 0.0
    return f"{int(differs.sum())} of {a.numel()} values, by up to {largest:.3g}"
