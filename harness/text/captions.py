"""The captions of a run as conditions: which one a training sample shows, and which ones an evaluation draws.

A training sample shows one of its captions, chosen by the stream `caption` at its global index. Evaluations
use the first caption of held-out samples, which is the most detailed one if the data set has an order. A
sample without captions shows the empty caption, which is also the null condition of guidance.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from harness.backbone.condition import Text
from harness.config.evaluation_spec import EvalSpec
from harness.config.spec import RunSpec
from harness.data.dataset import Capabilities, Dataset, label_of
from harness.data.disk.captions import check_encodable
from harness.errors import UserError
from harness.flow.sampling import Given
from harness.runtime.random_streams import Streams
from harness.text.base import TextEncoder, open_text_encoder
from harness.text.cache import add_captions, open_store
from harness.text.stored import StoredText

EMPTY = ""
Note = Callable[[str], None]


def ignore(_: str) -> None:
    """Show no note."""


class RunCaptions:
    """The captions of a data set, with their features from a frozen encoder.

    Raises `UserError` for data without captions.
    """

    texts_known = True
    """False if captions are known by their features alone, so that their texts are placeholders."""

    def __init__(self, encoder: TextEncoder, dataset: Dataset, note: Note = ignore) -> None:
        captions = Capabilities(dataset).captions
        if captions is None:
            raise no_captions(encoder.name)
        self.encoder, self.dataset, self._captions = encoder, dataset, captions
        self._store = open_store(encoder)
        self.added = add_captions(self._store, encoder, lambda: itertools.chain([EMPTY], self._all()), note)
        if self.added.distinct == 1:
            raise UserError("no sample of the data set has a caption with text; check data.caption_key")
        self.empty: Text = self._store.read([EMPTY])
        """The features of the empty caption (1, L, D)."""
        if self.added.first_cut is not None:
            first = next(itertools.islice(self._all(), self.added.first_cut - 1, None))
            note(
                f"{self.added.cut} of {self.added.captions - 1} captions have more than {encoder.longest} "
                f"tokens and are cut (text.length); the first is {shortened(first)!r}"
            )

    def of_samples(self, index: int) -> tuple[str, ...]:
        """Return the captions of a sample; the empty one for a sample without."""
        return self._captions(index) or (EMPTY,)

    def chosen(self, place: np.ndarray, draw: Tensor) -> Text:
        """Return a caption of each sample at data set indices (B,); `draw` (B,) in [0, 1) chooses it."""
        return self._store.read(
            [one_of(self.of_samples(int(i)), u) for i, u in zip(place, draw.tolist(), strict=True)]
        )

    def first(self, place: np.ndarray) -> Text:
        """Return the first caption of each sample at data set indices (B,)."""
        return self._store.read(self.first_texts(place))

    def first_texts(self, place: np.ndarray) -> list[str]:
        """Return the first caption of each sample that is not empty; empty without one."""
        return [next(filter(None, self.of_samples(int(index))), "") for index in place]

    def with_captions(self, place: np.ndarray) -> np.ndarray:
        """Return those of some data set indices whose samples have a caption that is not empty."""
        return np.array([i for i in place if any(self._captions(int(i)))], dtype=np.int64)

    # Any: JSON.
    def about(self) -> dict[str, Any]:
        """Return encoder and captions as a run records them."""
        encoder, added = self.encoder, self.added
        return {
            "name": encoder.name,
            "sha256": encoder.sha256,
            "params": encoder.params,
            "flops": encoder.flops,
            "one_off_flops": encoder.flops * added.distinct,
            "captions": added.captions - 1,
            "distinct": added.distinct,
            "cut": added.cut,
        }

    def _all(self) -> Iterator[str]:
        return (text for index in range(len(self.dataset)) for text in self._captions(index))


class StoredCaptions(RunCaptions):
    """The captions of a data set by their stored features; their texts are not known."""

    texts_known = False

    def __init__(self, encoder: StoredText, dataset: Dataset) -> None:
        self.encoder, self.dataset, self._states = encoder, dataset, encoder.states
        self.empty = encoder.encode([EMPTY])

    def of_samples(self, index: int) -> tuple[str, ...]:
        """Return names of the captions of a sample, in place of their texts."""
        return tuple(f"caption {k} of sample {index}" for k in range(self._states.counts[index])) or (EMPTY,)

    def chosen(self, place: np.ndarray, draw: Tensor) -> Text:
        counts = self._states.counts[place]
        return self._read(place, [int(u * n) for u, n in zip(draw.tolist(), counts.tolist(), strict=True)])

    def first(self, place: np.ndarray) -> Text:
        return self._read(place, [0] * len(place))

    def with_captions(self, place: np.ndarray) -> np.ndarray:
        return place[self._states.counts[place] > 0].astype(np.int64)

    def about(self) -> dict[str, object]:
        captions = int(self._states.counts.sum())
        return {
            "name": self.encoder.name, "sha256": self.encoder.sha256, "params": 0, "flops": 0,
            "one_off_flops": 0, "captions": captions, "distinct": captions + 1, "cut": 0,
        }  # fmt: skip

    def _read(self, place: np.ndarray, captions: Sequence[int]) -> Text:
        """Return the features of one caption of each sample; of the empty one for a sample without."""
        states = [
            self._states.states(int(i), k) if self._states.counts[i] else self.empty.features[0].numpy()
            for i, k in zip(place, captions, strict=True)
        ]
        return Text(torch.from_numpy(np.stack(states)))


def one_of(captions: Sequence[str], draw: float) -> str:
    """Return the caption that a uniform number in [0, 1) chooses."""
    return captions[int(draw * len(captions))]


def open_captions(
    spec: RunSpec, dataset: Dataset, device: torch.device, note: Note = ignore
) -> RunCaptions | None:
    """Return the captions of a run's data; None for a run that is conditioned on labels."""
    if not spec.text.encoder:
        return None
    has = Capabilities(dataset)
    if has.captions is None and has.caption_states is None:
        raise no_captions(spec.text.encoder)
    encoder = open_text_encoder(spec.text, dataset, held_out=spec.data.held_out, device=device)
    if isinstance(encoder, StoredText):
        return StoredCaptions(encoder, dataset)
    return RunCaptions(encoder, dataset, note)


class CaptionConditions:
    """The conditions of an evaluation: the first captions of held-out samples, the same for every run.

    `eval.labels = "balanced"` uses all samples equally often, `random` draws them. If no held-out sample has
    a caption, those of the training split are used. The label of a condition is that of its sample.
    """

    given: Given | None = None

    def __init__(
        self, captions: RunCaptions, spec: EvalSpec, held_out: np.ndarray | None, train: np.ndarray
    ) -> None:
        self.captions, self.spec, self.null = captions, spec, captions.empty
        places = captions.with_captions(np.empty(0, np.int64) if held_out is None else held_out)
        self.side = "held out" if len(places) else "training"
        self._places = places if len(places) else captions.with_captions(train)

    def condition(self, index: np.ndarray) -> Text:
        """Return the conditions of samples with indices (B,)."""
        return self.captions.first(self._of(index))

    def labels(self, index: np.ndarray) -> Tensor:
        """Return the labels (B,) of the samples whose captions these are."""
        return torch.tensor([label_of(self.captions.dataset, int(place)) for place in self._of(index)])

    def texts(self, index: np.ndarray) -> list[str]:
        """Return the captions of samples with indices (B,)."""
        return self.captions.first_texts(self._of(index))

    def places(self, index: np.ndarray) -> np.ndarray:
        """Return the data set indices (B,) of the samples whose captions these are."""
        return self._of(index)

    # Any: JSON.
    def about(self) -> dict[str, Any]:
        """Return what values of a metric depend on, as JSON: the captions, and not the encoder of a run."""
        return {"captions": {"side": self.side, "samples": len(self._places)}}

    @property
    def encoder_sha256(self) -> str:
        return self.captions.encoder.sha256

    def _of(self, index: np.ndarray) -> np.ndarray:
        count = len(self._places)
        if self.spec.labels == "balanced":
            return self._places[index % count]
        return self._places[Streams(self.spec.seed).integers("eval_caption", index, count).numpy()]


class PromptConditions:
    """The conditions of samples that are drawn from given prompts: sample i has prompt i mod n."""

    given: Given | None = None

    def __init__(self, encoder: TextEncoder, prompts: Sequence[str]) -> None:
        for prompt in prompts:
            check_encodable(prompt, "--prompt")
        self.prompts, self._encoder = list(prompts), encoder
        texts = encoder.encode([*prompts, EMPTY])
        self._features, self.null = texts[: len(prompts)], texts[slice(len(prompts), None)]

    def condition(self, index: np.ndarray) -> Text:
        """Return the conditions of samples with indices (B,)."""
        return self._features[index % len(self.prompts)]

    def labels(self, index: np.ndarray) -> Tensor:
        """Return labels (B,): the number of each sample's prompt."""
        return torch.from_numpy(index % len(self.prompts))

    def texts(self, index: np.ndarray) -> list[str]:
        """Return the prompts of samples with indices (B,)."""
        return [self.prompts[i] for i in index % len(self.prompts)]

    def places(self, index: np.ndarray) -> np.ndarray:
        """Return no data set indices: prompts belong to no sample."""
        return np.empty(0, np.int64)

    # Any: JSON.
    def about(self) -> dict[str, Any]:
        """Return what samples depend on, as JSON: the prompts."""
        content = hashlib.sha256("\0".join(self.prompts).encode(errors="surrogatepass")).hexdigest()
        return {"captions": {"prompts": content}}

    @property
    def encoder_sha256(self) -> str:
        return self._encoder.sha256


def no_captions(encoder: str) -> UserError:
    """Return the error for data without captions."""
    return UserError(
        f"text.encoder = {encoder} needs captions, which this data set does not have; choose "
        "data.name=prompts, or name their column with data.caption_key, also when latents are encoded; "
        "features that are stored with latents are text.encoder=stored"
    )


def shortened(text: str, most: int = 60) -> str:
    """Return the beginning of a text.

    >>> shortened("a red seven", 5)
    'a red...'
    """
    return text if len(text) <= most else f"{text[:most]}..."
