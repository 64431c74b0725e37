"""The registry of methods, data sets, encoders, text encoders, codecs and tasks: name -> "module:attribute".

Modules are imported on use. Other packages add to it through the entry-point groups `flowrace.methods`,
`.datasets`, `.encoders`, `.text_encoders`, `.codecs` and `.tasks`.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from importlib.metadata import entry_points
from typing import Any

from harness.config import moved_modules
from harness.errors import UserError, unknown

METHODS = {
    "flow": "methods.flow:Flow",
    "repa": "methods.repa:Repa",
    "irepa": "methods.irepa:IRepa",
    "relational": "methods.relational:Relational",
    "gram": "methods.gram:Gram",
    "haste": "methods.haste:Haste",
    "reg": "methods.reg:Reg",
    "sra": "methods.sra:Sra",
    "self_flow": "methods.self_flow:SelfFlow",
    "dual_timestep": "methods.dual_timestep:DualTimestep",
    "diffusion_forcing": "methods.diffusion_forcing:DiffusionForcing",
    "full_masking": "methods.full_masking:FullMasking",
    "attention_separation": "methods.attention_separation:AttentionSeparation",
    "layersync": "methods.layersync:LayerSync",
    "dispersive": "methods.dispersive:Dispersive",
    "sra2": "methods.sra2:Sra2",
    "dupa": "methods.dupa:Dupa",
    "contrastive_flow": "methods.contrastive_flow:ContrastiveFlow",
    "internal_guidance": "methods.internal_guidance:InternalGuidance",
    "tread": "methods.tread:Tread",
    "sigreg": "methods.sigreg:SigReg",
    "diversedit": "methods.diversedit:DiverseDiT",
    "reed": "methods.reed:Reed",
    "sprint": "methods.sprint:Sprint",
    "self_transcendence": "methods.self_transcendence:SelfTranscendence",
    "pixelrepa": "methods.pixelrepa:PixelRepa",
    "redi": "methods.redi:ReDi",
}
DATASETS = {
    "digits": "harness.data.generated.digits:Digits",
    "folder": "harness.data.disk.folder:ImageFolder",
    "npz": "harness.data.disk.arrays:NpzImages",
    "idx": "harness.data.disk.arrays:IdxImages",
    "parquet": "harness.data.disk.parquet:ParquetImages",
    "arrow": "harness.data.disk.arrow:ArrowImages",
    "mds": "harness.data.disk.mds:MdsImages",
    "webdataset": "harness.data.disk.webdataset:TarImages",
    "zip": "harness.data.disk.zipped:ZippedImages",
    "words": "harness.data.generated.words:Words",
    "moving_digits": "harness.data.generated.moving_digits:MovingDigits",
    "videos": "harness.data.disk.videos:Videos",
    "tones": "harness.data.generated.tones:Tones",
    "sounds": "harness.data.disk.sounds:Sounds",
    "bounce": "harness.data.generated.bounce:Bounce",
    "films": "harness.data.disk.films:Films",
    "demos": "harness.data.disk.demos:Demos",
    "prompts": "harness.data.generated.prompts:Prompts",
    "latents": "harness.latents.dataset:Latents",
}
STACK = "methods.common.stack"
"""The module that makes one method of several."""
# Family -> class; a full name is "family:model".
ENCODERS = {
    "timm": "harness.encoders.timm:TimmEncoder",
    "open_clip": "harness.encoders.open_clip:OpenClipEncoder",
    "local": "harness.encoders.local:LocalEncoder",
    "random": "harness.encoders.local:RandomEncoder",
    "cached": "harness.encoders.cached:CachedEncoder",
    "torchscript": "harness.encoders.torchscript:TorchScriptEncoder",
    "run": "harness.train.run_encoder:RunEncoder",
    "pca": "harness.encoders.pca:PcaEncoder",
}
# Family -> class; a full name is "family:model", or the family alone if it has a single model.
TEXT_ENCODERS = {
    "minilm": "harness.text.transformers:MiniLm",
    "transformers": "harness.text.transformers:TransformersText",
    "open_clip": "harness.text.open_clip:OpenClipText",
    "local": "harness.text.local:LocalText",
    "random": "harness.text.local:RandomText",
    "stored": "harness.text.stored:StoredText",
}
CODECS = {
    "identity": "harness.latents.identity:Identity",
    "sd-vae": "harness.latents.sd_vae:SdVae",
    "wan-vae": "harness.latents.wan_vae:WanVae",
    "oobleck": "harness.latents.audio_codecs:Oobleck",
    "dac": "harness.latents.audio_codecs:Dac",
    "rae": "harness.latents.rae:Rae",
}
# Family of tasks -> class; a full name is "family:variant", or the family alone.
TASKS = {
    "open-and-place": "harness.environments.open_and_place:OpenAndPlace",
    "metaworld": "harness.environments.metaworld:MetaWorld",
    "pusht": "harness.environments.pusht:PushT",
}
_TABLES = {
    "method": METHODS,
    "dataset": DATASETS,
    "encoder": ENCODERS,
    "text_encoder": TEXT_ENCODERS,
    "codec": CODECS,
    "task": TASKS,
}
KINDS = tuple(_TABLES)


def names(kind: str) -> list[str]:
    """Return all registered names of a kind of `KINDS`."""
    return sorted({*_TABLES[kind], *plugins(kind)})


def stack_name(terms: Iterable[str]) -> str:
    """Return the name of a stack of methods: built-in ones in the order of `METHODS`, then plug-ins.

    >>> stack_name(["tread", "repa"])
    'repa+tread'
    """
    order = list(METHODS)
    return "+".join(
        sorted(terms, key=lambda name: (order.index(name) if name in order else len(order), name))
    )


def load(kind: str, name: str) -> Any:
    """Return the class registered under a name, or that of a stack of methods such as `repa+tread`.

    Raises `UserError` with the nearest match if it is unknown.
    """
    if kind == "method" and "+" in name:
        return importlib.import_module(STACK).stack_of(name)
    if name in _TABLES[kind]:
        module, _, attribute = _TABLES[kind][name].partition(":")
        return getattr(importlib.import_module(module), attribute)
    found = plugins(kind)
    if name not in found:
        raise unknown(kind.replace("_", " "), name, names(kind), see=f"flowrace list {kind}s")
    moved_modules.install()
    try:
        return found[name].load()
    except (ImportError, AttributeError) as error:
        raise UserError(
            f"{kind} '{name}' is registered by {found[name].value} but cannot be imported: {error}"
        ) from error


# Any: entry points.
def plugins(kind: str) -> dict[str, Any]:
    """Return the entry points of other packages that register names of a kind."""
    return {point.name: point for point in entry_points(group=f"flowrace.{kind}s")}
