"""What bench_training.py trains: a deep MLP, and decoder layers of a language model of about 1 B parameters."""

from torch import Tensor, nn
from torch.nn import functional as F

from bitlayers.linear_group import linear_group


class Mlp(nn.Sequential):
    """Four layers of 1024."""

    def __init__(self) -> None:
        layers = [nn.Sequential(nn.Linear(1024, 1024), nn.ReLU()) for _ in range(3)]
        super().__init__(*layers, nn.Linear(1024, 1024))


class DecoderLayer(nn.Module):
    """Pre-norm attention and SwiGLU with the sizes of Llama 3.2 1B: 2048, 32 heads, 8 key-value heads, 8192."""

    heads, key_value_heads, head_size = 32, 8, 64

    def __init__(self) -> None:
        super().__init__()
        size, inner = self.heads * self.head_size, 8192
        self.attention_norm, self.feed_forward_norm = nn.RMSNorm(size), nn.RMSNorm(size)
        self.query, self.output = nn.Linear(size, size, bias=False), nn.Linear(size, size, bias=False)
        key_value = self.key_value_heads * self.head_size
        self.key, self.value = nn.Linear(size, key_value, bias=False), nn.Linear(size, key_value, bias=False)
        self.gate, self.up = nn.Linear(size, inner, bias=False), nn.Linear(size, inner, bias=False)
        self.down = nn.Linear(inner, size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Maps x [batch, tokens, 2048] to the same."""
        heads = [
            projected.unflatten(-1, (-1, self.head_size)).transpose(1, 2)
            for projected in linear_group([self.query, self.key, self.value], self.attention_norm(x))
        ]
        attended = F.scaled_dot_product_attention(*heads, is_causal=True, enable_gqa=True)
        x = x + self.output(attended.transpose(1, 2).flatten(-2))
        gate, up = linear_group([self.gate, self.up], self.feed_forward_norm(x))
        result: Tensor = x + self.down(F.silu(gate) * up)
        return result


def decoder(layers: int) -> nn.Sequential:
    """`layers` decoder layers, as a model's initialization leaves them."""
    model = nn.Sequential(*[DecoderLayer() for _ in range(layers)])
    for parameter in model.parameters():
        if parameter.dim() == 2:
            nn.init.normal_(parameter, std=0.02)
    return model


def squares(model: nn.Module, x: Tensor) -> Tensor:
    """A loss: the mean square of the model's output."""
    return model(x).float().square().mean()
