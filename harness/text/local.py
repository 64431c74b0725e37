"""Local text encoders: a small causal transformer trained on the captions of this data set, and untrained.

Both are pure functions of the captions, the split and the length. The objective is to predict the next token.
Initial weights and order come from named streams, and training runs on one thread by a fixed recipe. Trained
weights are cached under a hash of all that, with their checksum.

Tokens are words in lower case. Words outside of the vocabulary are spelled, so captions in any script have
tokens.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.config.data_spec import TextSpec
from harness.data.dataset import Capabilities, Dataset, content_of
from harness.data.open import split
from harness.encoders.kept_tensors import Made, kept_tensors
from harness.encoders.local import Block, initial_weights, schedule
from harness.errors import UserError
from harness.records import checkpoint
from harness.runtime.random_streams import Streams
from harness.text.base import (
    FrozenTextEncoder,
    Hidden,
    TextArchitecture,
    Tokens,
    check_layer,
    check_length,
    model_of,
    text_flops,
)
from metrics.extractors.local import one_thread

MODEL = "text"
DEPTH, WIDTH, HEADS = 2, 64, 4
LONGEST = 512
PAD, UNKNOWN, BEGIN, END = range(4)
WORDS, LETTERS = 4096, 1024
"""Largest numbers of words and of single characters in a vocabulary."""
READ = 100_000
"""Largest number of samples whose captions are read, spread over the training split."""
RECIPE = 1
"""Version of the training below; increase it with every change that moves a weight, to renew the cache."""
EPOCHS, MAX_STEPS, BATCH, LEARNING_RATE, WEIGHT_DECAY = 4, 1000, 64, 3e-3, 0.05
_WORD = re.compile(r"\w+|[^\w\s]")


class Vocabulary:
    """Words and characters with their token numbers."""

    def __init__(self, entries: Sequence[str]) -> None:
        self.entries = list(entries)
        self._number = {entry: END + 1 + i for i, entry in enumerate(self.entries)}

    def __len__(self) -> int:
        return END + 1 + len(self.entries)

    @staticmethod
    def of_captions(captions: Sequence[str]) -> Vocabulary:
        """Return the most frequent characters and words, in an order that depends on the captions alone."""
        words = Counter(word for caption in captions for word in _WORD.findall(caption.lower()))
        letters: Counter[str] = Counter()
        for word, times in words.items():
            letters.update(dict.fromkeys(word, times))
        chosen = [entry for entry, _ in sorted(letters.items(), key=_by_frequency)[:LETTERS]]
        longer = [entry for entry, _ in sorted(words.items(), key=_by_frequency) if len(entry) > 1]
        return Vocabulary(chosen + longer[:WORDS])

    def read(self, caption: str) -> list[int]:
        """Return the tokens of a caption, between begin and end."""
        found = [BEGIN]
        for word in _WORD.findall(caption.lower()):
            number = self._number.get(word)
            found += [number] if number else [self._number.get(letter, UNKNOWN) for letter in word]
        return [*found, END]

    def padded(self, captions: Sequence[str], length: int) -> Tokens:
        """Return captions as tokens, cut and padded to a length; a cut caption keeps its end token."""
        ids = torch.full((len(captions), length), PAD)
        for row, caption in zip(ids, captions, strict=True):
            tokens = self.read(caption)
            if len(tokens) > length:
                tokens = [*tokens[: length - 1], END]
            row[: len(tokens)] = torch.tensor(tokens)
        return Tokens(ids, ids != PAD)


class CaptionModel(nn.Module):
    """Pre-norm causal transformer with learned positions, which predicts the next token of a caption."""

    def __init__(self, vocabulary: int, length: int) -> None:
        super().__init__()
        self.embed = nn.Parameter(torch.empty(vocabulary, WIDTH))
        self.position = nn.Parameter(torch.empty(length, WIDTH))
        self.blocks = nn.ModuleList(Block(WIDTH, HEADS, causal=True) for _ in range(DEPTH))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, vocabulary)

    def forward(self, ids: Tensor, layer: int | None = None) -> Tensor:
        """Return the tokens (n, L, WIDTH) after the final norm, or the output of a block (1-based)."""
        x = F.embedding(ids, self.embed) * WIDTH**0.5 + self.position[: ids.shape[1]]
        for number, block in enumerate(self.blocks, start=1):
            x = block(x)
            if number == layer:
                return x
        return self.norm(x)


class RandomText(FrozenTextEncoder):
    """The untrained network of `local:text`, as a control for the effect of its training."""

    def __init__(
        self, settings: TextSpec, dataset: Dataset, *, held_out: float, device: torch.device
    ) -> None:
        super().__init__(settings, self.architecture(settings, dataset), device)
        self.vocabulary, self._network = self._prepared(dataset, held_out)
        about = f"{checkpoint.digest(self._network.state_dict())} {json.dumps(self.vocabulary.entries)}"
        self.sha256 = hashlib.sha256(about.encode()).hexdigest()
        self.params = sum(p.numel() for p in self._network.parameters())
        self._network.to(device).requires_grad_(False).eval()

    @staticmethod
    def architecture(settings: TextSpec, dataset: Dataset) -> TextArchitecture:
        """Return width, length and FLOPs; raises `UserError` for another model than `text`."""
        if settings.weights:
            raise UserError(f"text encoder '{settings.encoder}' takes no weights file; remove text.weights")
        if (model := model_of(settings, "local:text")) != MODEL:
            family = settings.encoder.partition(":")[0]
            raise UserError(f"text encoder '{family}' has no model '{model}'; write {family}:{MODEL}")
        check_layer(settings, DEPTH)
        check_length(settings, LONGEST)
        with torch.device("meta"):
            network = CaptionModel(END + 1, settings.length)
        flops = text_flops(network, settings.length, lambda net, ids: net(ids))
        return TextArchitecture(WIDTH, 1 if settings.pooled else settings.length, flops)

    def tokens(self, captions: Sequence[str]) -> Tokens:
        return self.vocabulary.padded(captions, self.settings.length)

    def token_counts(self, captions: Sequence[str]) -> np.ndarray:
        return np.array([len(self.vocabulary.read(caption)) for caption in captions], dtype=np.int64)

    def hidden(self, tokens: Tokens) -> Hidden:
        """Return the tokens; the pooled vector is the last real token, which depends on all earlier ones."""
        last = self._network(tokens.ids)
        chosen = last if self.settings.layer is None else self._network(tokens.ids, self.settings.layer)
        return Hidden(chosen, last[torch.arange(len(last)), tokens.mask.sum(1) - 1])

    def _prepared(self, dataset: Dataset, held_out: float) -> tuple[Vocabulary, CaptionModel]:
        vocabulary = Vocabulary.of_captions(training_captions(dataset, held_out, self.name))
        return vocabulary, build(len(vocabulary), self.settings.length)


class LocalText(RandomText):
    """A small causal transformer trained on the captions of the training split."""

    def _prepared(self, dataset: Dataset, held_out: float) -> tuple[Vocabulary, CaptionModel]:
        """Load or train the network. If the cached weights are damaged, it is trained again."""
        parts = [RECIPE, content_of(dataset), held_out, self.settings.length, self.device.type]

        def train() -> Made:
            captions = training_captions(dataset, held_out, self.name)
            vocabulary = Vocabulary.of_captions(captions)
            network = build(len(vocabulary), self.settings.length)
            fit(network, vocabulary.padded(captions, self.settings.length), self.device)
            return network.state_dict(), {"vocabulary": json.dumps(vocabulary.entries)}

        saved = kept_tensors("local-text", parts, train)
        vocabulary = Vocabulary(json.loads(saved.meta["vocabulary"]))
        network = build(len(vocabulary), self.settings.length)
        network.load_state_dict(saved.tensors)
        return vocabulary, network


def training_captions(dataset: Dataset, held_out: float, encoder: str) -> list[str]:
    """Return the captions of the training split, of at most `READ` samples.

    Raises `UserError` that names the encoder for data without captions.
    """
    captions = Capabilities(dataset).captions
    train = split(dataset, held_out).train
    chosen = train[:: -(-len(train) // READ)]
    found = [text for index in chosen for text in (captions(int(index)) if captions else ())]
    if not found:
        raise UserError(
            f"text encoder '{encoder}' needs captions for its vocabulary, which this data set does not have; "
            "choose minilm or transformers:FOLDER"
        )
    return found


def build(vocabulary: int, length: int) -> CaptionModel:
    """Return the network with its initial weights, which depend only on each parameter's name and shape."""
    # Initialisation on the meta device leaves torch's own generator unchanged.
    with torch.device("meta"):
        network = CaptionModel(vocabulary, length)
    network.to_empty(device="cpu")
    streams = Streams(0)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.copy_(initial_weights(name, parameter.shape, streams))
    return network


def fit(network: CaptionModel, tokens: Tokens, device: torch.device) -> None:
    """Train in place: AdamW on the cross-entropy of the next token, with warm-up and cosine decay.

    It takes 4 epochs of batches of 64, at most 1000 steps.
    """
    per_epoch = max(1, len(tokens.ids) // BATCH)
    steps = min(EPOCHS * per_epoch, MAX_STEPS)
    network.to(device).train()
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True
    )
    with one_thread(), torch.enable_grad():
        for step, rows in zip(range(steps), _batches(len(tokens.ids), per_epoch), strict=False):
            loss = next_token_loss(network, tokens, rows, device)
            optimizer.param_groups[0]["lr"] = LEARNING_RATE * schedule((step + 1) / steps)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
    network.cpu().eval()


def next_token_loss(network: CaptionModel, tokens: Tokens, rows: Tensor, device: torch.device) -> Tensor:
    """Return the mean cross-entropy of the next token over the real tokens of some captions."""
    # Columns of padding alone would only cost time.
    columns = int(tokens.mask[rows].sum(1).max())
    ids = tokens.ids[rows, :columns].to(device)
    logits = network.head(network(ids[:, :-1]))
    return F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), ignore_index=PAD)


def _batches(captions: int, per_epoch: int) -> Iterator[Tensor]:
    """Yield the rows of each batch, endlessly."""
    streams, epoch = Streams(0), 0
    while True:
        order = torch.from_numpy(streams.permutation("encoder/order", epoch, captions))
        for place in range(per_epoch):
            yield order[place * BATCH : (place + 1) * BATCH]
        epoch += 1


def _by_frequency(entry: tuple[str, int]) -> tuple[int, str]:
    return -entry[1], entry[0]
