"""How the zoo's layers are initialised."""

from __future__ import annotations

from torch import nn


def initialise(network: nn.Module, *, linear_std: float | None = None) -> None:
    """Draw convolutions from He et al.'s normal distribution and make batch norms the identity.

    Convolutions have standard deviation ``sqrt(2 / (k * k * out_channels))`` (He et al., 2015, eq. 14) and no
    bias. With ``linear_std``, linear layers are drawn from a normal of that deviation with bias 0; without
    it they keep torch's default. Uses torch's global generator.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
            nn.init.normal_(module.weight, 0.0, (2.0 / fan_out) ** 0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear) and linear_std is not None:
            nn.init.normal_(module.weight, 0.0, linear_std)
            nn.init.zeros_(module.bias)
