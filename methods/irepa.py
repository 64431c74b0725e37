"""iREPA: REPA with a convolution as projector and spatially normalised targets (arXiv 2512.10794).

L = L_gen + coefficient * mean -cos( conv(h_l), y ),    y = (z - gamma mean_tokens z) / (std_tokens z + 1e-6)

Defaults: 3x3 convolution, gamma 0.6 (latent models; 0.8 for pixel models), coefficient 1.0, REPA's layers.
Cost: as REPA, with a smaller projector.
Disputed: paper and README have a 3x3 convolution. The released LDM command (End2End-Diffusion/iREPA,
`ldm/train.py` line 442) does not set the kernel and trains a 1x1 convolution, which is `kernel = 1`.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from methods.common.alignment import ConvProjector, cosine, spatial_norm
from methods.common.encoder_alignment import Encoded, EncodedConfig


class IRepa(Encoded):
    source = "iREPA, arXiv 2512.10794; End2End-Diffusion/iREPA 99ad4ac"
    headline = "SiT-XL/2 FID 16.96 against REPA's 19.06 at 100k steps (secondary note on iREPA)"

    class Config(EncodedConfig):
        name: Literal["irepa"] = "irepa"
        coefficient: float = Field(1.0, ge=0)
        """Weight of the alignment term."""
        kernel: Literal[1, 3] = 3
        """Side of the convolution that projects the layer."""
        normalise: bool = True
        """Spatial normalisation of the target."""
        gamma: float = Field(0.6, ge=0, le=1)
        """Fraction of the mean over tokens that is subtracted from the target (0.8 for pixels)."""

    config: Config

    def projector(self, dim: int) -> nn.Module:
        backbone = self.setting.backbone
        return ConvProjector(backbone.size.width, dim, self.config.kernel, backbone.grid)

    def compare(self, projected: Tensor, target: Tensor) -> Tensor:
        if self.config.normalise:
            target = spatial_norm(target, self.config.gamma)
        return -cosine(projected, target).mean()
