"""A network as a policy: it generates the actions that follow a given observation.

The current frame and the state are given tokens, and the frames that follow are generated with the actions
and left out. Guidance is not used.

B  observations    N  values of a sample    H  actions of a chunk    A  numbers of an action
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from harness.acting.policy import Observation
from harness.backbone.network import Backbone, BackboneConfig
from harness.backbone.tokens import split_parts
from harness.config.evaluation_spec import EvalSpec
from harness.data.disk.pixels import fit
from harness.data.open import from_pixels
from harness.data.robot import RobotLayout
from harness.errors import UserError
from harness.flow.samplers import SAMPLERS, Rule, plain, velocity_field

DETERMINISTIC = ("euler", "heun")


@dataclass(frozen=True)
class NetworkPolicy:
    """The EMA network of a run as a policy."""

    model: Backbone
    robot: RobotLayout
    spec: EvalSpec
    """Sampler and number of steps."""
    device: torch.device
    resizes: bool = False
    """Frames of other sizes are resized and cropped as those of the demonstrations were."""
    rule: Rule = plain

    @property
    def config(self) -> BackboneConfig:
        return self.model.config

    @property
    def chunk(self) -> int:
        return self.robot.chunk

    @property
    def action_size(self) -> int:
        return self.robot.action_size

    @property
    def observes_frames(self) -> bool:
        return self.robot.observes_frames

    @property
    def device_kind(self) -> str:
        return self.device.type

    @property
    def noise_shape(self) -> tuple[int, ...]:
        return self.config.x_shape

    @torch.no_grad()
    def act(self, observation: Observation, noise: Tensor) -> Tensor:
        """Return actions (B, H, A) float32 on the CPU; see `harness.acting.policy.Policy`."""
        given = self._given(observation).to(self.device)
        generated = self.config.generated_values
        assert generated is not None
        generated = generated.to(self.device)
        y = torch.zeros(len(given), dtype=torch.int64, device=self.device)
        free = velocity_field(self.model, y, null=self.config.classes, rule=self.rule)
        v = lambda x, t: free(torch.where(generated, x, given), t)  # noqa: E731
        z = noise.to(self.device, torch.float32)
        steps, shift = self.spec.sampler_steps, self.spec.sampler_shift
        x = SAMPLERS[self.spec.sampler](v, z, steps, noise=_no_noise, shift=shift)
        scaled = split_parts(x.float().cpu(), list(self.robot.parts.values()))[-1]
        return torch.from_numpy(self.robot.action.restored(scaled.transpose(1, 2).numpy()))

    def _given(self, observation: Observation) -> Tensor:
        """Return samples (B, N) float32 with the observation, and zeros in place of what is generated."""
        shapes, found = self.robot.parts, []
        if self.robot.image is not None:
            frames = self._frames(np.asarray(observation["image"]))
            found.append(np.zeros((len(frames), *shapes["video"]), np.float32))
            found[-1][:, :, 0] = frames
        if self.robot.state is not None:
            found.append(self.robot.state.scaled(self._state(observation)))
        found.append(np.zeros((len(found[0]), *shapes["action"]), np.float32))
        return torch.from_numpy(np.concatenate([part.reshape(len(part), -1) for part in found], axis=1))

    def _frames(self, image: np.ndarray) -> np.ndarray:
        """Return frames (B, C, H, W) as the network reads them, from images (B, H', W', 3) uint8."""
        assert self.robot.image is not None
        channels, *size = self.robot.image
        if image.ndim != 4 or image.dtype != np.uint8 or image.shape[3] != 3:
            raise UserError(
                f"an observation's image is {image.dtype} {image.shape}, expected uint8 (B, height, width, 3)"
            )
        if list(image.shape[1:3]) != size and not self.resizes:
            height, width = image.shape[1:3]
            raise UserError(
                f"the frames of this environment are {width}x{height} pixels, but those of the "
                f"demonstrations {size[1]}x{size[0]}; fine-tune with --set "
                f"data.resolution={size[0]}, or on other demonstrations"
            )
        if channels == 3 and list(image.shape[1:3]) == size:
            return from_pixels(np.ascontiguousarray(image.transpose(0, 3, 1, 2))).numpy()
        shape = self.robot.image
        return from_pixels(np.stack([fit(Image.fromarray(one), shape) for one in image])).numpy()

    def _state(self, observation: Observation) -> np.ndarray:
        """Return states (B, S), with that of the environment if the demonstrations have no frames."""
        assert self.robot.state is not None
        state = np.asarray(observation["state"], dtype=np.float32)
        if self.robot.with_environment and "environment_state" in observation:
            further = np.asarray(observation["environment_state"], dtype=np.float32)
            state = np.concatenate([state, further], axis=1)
        known = len(self.robot.state.low)
        if state.ndim != 2 or state.shape[1] != known:
            raise UserError(
                f"the state of this environment is {state.shape}, but that of the demonstrations has {known} "
                "numbers; choose the task of the demonstrations"
            )
        return state


def _no_noise(i: int, x: Tensor) -> Tensor:
    raise ValueError("the samplers of policies add no noise")
