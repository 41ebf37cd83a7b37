"""A linear layer that any of several LoRA adapters may change, and the switch that says which. Shapes: R rank."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (as all of PyTorch calls it)


class Switch:
    """Which adapter is active; None is the bare base model. One is shared by all wrapped layers of a model."""

    def __init__(self) -> None:
        self.active: str | None = None


class LoraLinear(nn.Module):
    """A frozen linear layer plus the active adapter's B·A. The scaling alpha / rank is 1.

    Adapter weights are float32 (bfloat16 cannot hold a small step) and are cast to the activations' type in use.
    """

    def __init__(self, base: nn.Module, switch: Switch) -> None:
        super().__init__()
        self.base = base
        self.switch = switch
        self.lora_A = nn.ParameterDict()
        self.lora_B = nn.ParameterDict()
        rows, columns = base.get_parameter("weight").shape
        is_linear = isinstance(base, nn.Linear)  # GPT-2's Conv1D keeps its weight transposed
        self.in_features, self.out_features = (columns, rows) if is_linear else (rows, columns)

    @property
    def weight(self) -> Tensor:
        """The frozen layer's own weight: T5 looks at its type."""
        return self.base.get_parameter("weight")

    def add(self, name: str, rank: int, generator: torch.Generator) -> None:
        """A new adapter that changes nothing yet: A uniform as in PEFT, B zero."""
        device: torch.device = next(self.base.parameters()).device
        bound = 1 / math.sqrt(self.in_features)
        first_RD = torch.empty(rank, self.in_features).uniform_(-bound, bound, generator=generator)
        self.lora_A[name] = nn.Parameter(first_RD.to(device))
        self.lora_B[name] = nn.Parameter(torch.zeros(self.out_features, rank, device=device))

    def forward(self, x: Tensor) -> Tensor:
        """Base output plus the active adapter's."""
        out = self.base(x)
        name = self.switch.active
        if name is None or name not in self.lora_A:
            return out
        return out + F.linear(F.linear(x, self.lora_A[name].to(x.dtype)), self.lora_B[name].to(x.dtype))
