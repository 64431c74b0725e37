"""Names of metrics and their meaning. Nothing here imports torch, so that `flowrace list` answers at once."""

from __future__ import annotations

from typing import NamedTuple

from harness.records.evaluations import SUCCESS

HELD_OUT_LOSS = "loss:held_out"
"""The flow loss on held-out samples (held_out_loss.py); lower is better."""
LOSS_SUMMARY = (
    "flow loss at eight times on fixed held-out samples and noise, without sampling; lower is better; also "
    "recorded by time (loss:held_out@0.125), by part (loss:held_out/video), by length of the captions "
    "(loss:held_out/short_captions, loss:held_out/long_captions) or by what generated captions state "
    "(loss:held_out/two_digits, loss:held_out/left_of)"
)

SUCCESS_SUMMARY = (
    "share of closed-loop episodes that solve the task, of eval.samples at fixed starts and noise; higher is "
    "better; also by stage (success@open-and-place/opened); for runs that generate actions"
)


def is_sampled(name: str) -> bool:
    """Return whether a metric is one of generated samples, which the validation loss and success are not."""
    return name != HELD_OUT_LOSS and not name.startswith(SUCCESS)


class ReferenceFree(NamedTuple):
    """The requirements of a metric of the samples themselves (reference_free.py)."""

    data: str
    """The data that it needs, in words, for errors."""
    summary: str = ""
    """The meaning of the value, and which direction is better."""
    attribute: str = ""
    """The attribute that a data set must have, with all of its parts generated; empty for any video."""
    states: str = ""
    """The attribute that the captions of the data must state; empty for any captions."""
    part: str = ""
    """The kind of part that is measured, with which the data must be generated; empty for all parts."""
    captioned: bool = False
    """True if samples are compared with their captions, so that the run must be conditioned on captions."""
    least: int = 1
    """The fewest samples for which the metric is defined."""


_ASKED = {
    "object": "every digit",
    "colour": "every colour",
    "count": "the number of digits or bounces",
    "position": "the place or relation",
    "binding": "every digit in its own colour, of two groups that differ in both,",
    "tempo": "the tempo",
    # The tasks of GenEval (metrics/domain/geneval.py).
    "single_object": "the only digit (GenEval's single_object)",
    "two_objects": "both digits (GenEval's two_object)",
    "counting": "exactly the number of the only digit (GenEval's counting)",
    "colours": "the only digit in the colour (GenEval's colors)",
    "relative_position": "both digits in the relation (GenEval's position)",
    "colour_attribution": "both digits, each in the colour (GenEval's color_attr)",
}
_OF_CLIPS = ("object", "count", "tempo")
"""The attributes that captions of videos with sound state, and that each part shows."""


def _obeys(kind: str, part: str = "") -> ReferenceFree:
    """Return the requirements of `obeys:<kind>`, or of `obeys:<kind>/<part>` for one part of the samples."""
    examples = {"object": "prompts or bounce", "count": "prompts or bounce", "tempo": "bounce"}
    example = "bounce" if part else examples.get(kind, "prompts")
    shown = {"video": "videos", "audio": "sounds"}.get(part, "samples")
    return ReferenceFree(
        f"whose captions state the {kind}, for example {example}",
        f"share of {shown} that show {_ASKED[kind]} that their caption states; higher is better",
        states=kind,
        part=part,
        captioned=True,
    )


_WORDS, _ERRORS, _LOWER = "of rendered words, for example words", "character error rate", "lower is better"
REFERENCE_FREE = {
    "dynamics": ReferenceFree(
        "whose motion is known, for example moving_digits",
        "distance in pixels to the nearest possible path; lower is better",
        "motion",
    ),
    "sync": ReferenceFree(
        "with visible and audible impacts, for example bounce",
        "share of impacts and clicks that match within one frame; higher is better",
        "sound_frames",
    ),
    "cer:reader": ReferenceFree(_WORDS, f"{_ERRORS} of a network trained locally; {_LOWER}", "words"),
    "cer:tesseract": ReferenceFree(_WORDS, f"{_ERRORS} of Tesseract; {_LOWER}", "words"),
    "agreement:local": ReferenceFree(
        "with video", "share of frame pairs that a classifier labels alike; higher is better"
    ),
    **{f"obeys:{kind}": _obeys(kind) for kind in _ASKED},
    **{f"obeys:{kind}/{part}": _obeys(kind, part) for kind in _OF_CLIPS for part in ("video", "audio")},
    "drift:local": ReferenceFree(
        "with video", "feature variation within a video over that between videos; lower is better", least=3
    ),
}
_CAPTIONED = {
    "data": "of pictures with captions, for example prompts",
    "attribute": "captions",
    "captioned": True,
}
CAPTION_SCORES = {
    "clip_score": ReferenceFree(
        summary="mean of max(100 cos, 0) of picture and caption; higher is better", **_CAPTIONED
    ),
    "clip_score_hessel": ReferenceFree(
        summary="mean of 2.5 max(cos, 0) of picture and caption; higher is better", **_CAPTIONED
    ),
    "retrieval": ReferenceFree(
        summary="share of pictures whose own caption is the nearest among 32; higher is better", **_CAPTIONED
    ),
}
"""Value in the joint space of a CLIP, written `<value>:open_clip:<model>` -> its requirements."""
DISTANCES = {
    "fd": "Frechet distance, as FID; lower is better",
    "fd_infinity": "Frechet distance, extrapolated to infinitely many samples; lower is better",
    "kid": "kernel distance; lower is better",
    "cmmd": "maximum mean discrepancy with a Gaussian kernel; lower is better",
    "precision": "share of samples within the manifold of real ones, ADM's rule; higher is better",
    "recall": "share of real samples within the manifold of generated ones, ADM's rule; higher is better",
    "precision_torch_fidelity": "precision by torch-fidelity's rule; higher is better",
    "recall_torch_fidelity": "recall by torch-fidelity's rule; higher is better",
    "density": "samples per neighbourhood of a real one; higher is better",
    "coverage": "share of real samples with a generated neighbour; higher is better",
    "is": "inception score, split in order; higher is better",
    "is_shuffled": "inception score, shuffled before the split; higher is better",
    "memorisation": "nearest-neighbour check for copies of training samples",
    "accuracy": "share of samples that are classified as their label; higher is better",
}
"""Value over the features of any network, written `<value>:<extractor>` -> its meaning."""
RESERVED_NAMES = {
    "fid": "fd with Inception",
    "fid_infinity": "fd_infinity with Inception",
    "sfid": "Frechet distance of Inception's spatial features; lower is better",
    "is": "inception score with Inception",
    "is_shuffled": "shuffled inception score with Inception",
    "fvd": "fd with I3D, for videos",
    "fvd_infinity": "fd_infinity with I3D, for videos",
    "cmmd": "maximum mean discrepancy in CLIP ViT-L/14's features at 336 pixels",
}
"""Name that stands for a value of one network -> its meaning."""


def described() -> dict[str, str]:
    """Return every metric name with its meaning, `<value>:<extractor>` for those over any network."""
    over_any = {f"{value}:<extractor>": summary for value, summary in DISTANCES.items()}
    free = {name: f"{metric.summary}; for data {metric.data}" for name, metric in REFERENCE_FREE.items()}
    scores = {f"{value}:open_clip:<model>": metric.summary for value, metric in CAPTION_SCORES.items()}
    unsampled = {HELD_OUT_LOSS: LOSS_SUMMARY, f"{SUCCESS}<task>": SUCCESS_SUMMARY}
    return {**over_any, **RESERVED_NAMES, **unsampled, **scores, **free}
