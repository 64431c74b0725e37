"""The loss of a step as one module, and the encoder features that it reads."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor, nn

from harness.encoders.base import Encoder, guided_view_of, view_of
from harness.flow.batch import Batch, Draw, View
from harness.train.state import Run


class Objective(nn.Module):
    """Student and method as one module, so that one DDP wrapper covers every gradient."""

    def __init__(self, run: Run) -> None:
        super().__init__()
        self.model, self.method = run.model, run.method
        self._student = run.student

    def forward(self, batch: Batch, draw: Draw) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the total loss and its named parts, all scalars."""
        losses = self.method.loss(self._student, batch, draw)
        return losses.total, losses.parts


def with_encoder_features(run: Run, batch: Batch, draw: Draw) -> Batch:
    """Return a batch with features from each frozen encoder of the run, on the batch's device."""
    if (place := batch.place) is None:
        raise ValueError("encoder features need a batch of the data set")
    needs = run.method.needs()

    def view(encoder: Encoder) -> View:
        if needs.guided is not None:
            return guided_view_of(encoder, batch, draw, needs.guided)
        # A plug-in need not derive from `Viewer`.
        reads_samples = getattr(encoder, "reads_samples", False)
        images = batch.x0 if batch.pixels is None or reads_samples else batch.pixels
        return view_of(encoder, place, images, summary=needs.summary, attention=needs.attention)

    return replace(batch, views=tuple(map(view, run.encoders)))
