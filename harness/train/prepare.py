"""The preparation of a run's real samples: what its first start computes before its first step, and keeps."""

from __future__ import annotations

from collections.abc import Callable

from harness.assembly.build import backbone_config
from harness.assembly.given import gives_tokens
from harness.config.spec import RunSpec
from harness.data.open import open_dataset, split
from harness.encoders.base import data_of, open_encoder
from harness.evaluation.evaluator import Evaluator
from harness.files.progress import announced
from harness.runtime.distributed import join
from harness.runtime.environment import prepare
from harness.text.captions import open_captions


def prepare_real_samples(spec: RunSpec, note: Callable[[str], None]) -> None:
    """Fill the cache with the networks, features and noise floors that a run needs, and show what takes long.

    Threads and device are those of the spec, because the bits of features depend on them. Raises `UserError`
    as the start of the run would.
    """
    prepare(spec.runtime.threads)
    with join(spec.runtime.device) as world:
        with announced(note, f"opening the data {spec.data.root or spec.data.name}"):
            dataset = open_dataset(spec.data)
        grid, share = backbone_config(spec, dataset).grid, spec.data.held_out
        with announced(note, "opening the encoders"):
            for choice in spec.method.needs().encoders:
                read = data_of(choice, dataset)
                open_encoder(choice, read, grid=grid, held_out=share, device=world.device)
            captions = open_captions(spec, dataset, world.device, note)
        sides = split(dataset, share)
        Evaluator(
            spec.eval,
            dataset,
            sides.train,
            world.device,
            sides.held_out,
            world,
            note=note,
            captions=captions,
            giving=gives_tokens(spec.data, dataset.modality),
        )
