"""Stacks: several objectives as one, `method.name = "repa+tread"`.

L = L_gen + sum_i weight_i(step) L_i,    from one pass of the student

A term may also give L_gen a weight by step; the weights of several are multiplied.

Every term keeps its settings (`method.repa.coefficient`), schedule, encoders and switch-off. Terms share
noise and times, which at most one may draw in another way, and at most one has a sampling rule. A pair
of terms is accepted if one of them declares the other in `stacks_with`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from typing import Any, ClassVar, Literal, Self, cast

from pydantic import Field, create_model
from torch import Tensor, nn

from harness.backbone.condition import Condition, SharedText
from harness.backbone.times import Times
from harness.config import registry
from harness.config.backbone_spec import BackboneSpec
from harness.config.method_config import Schedule
from harness.errors import UserError
from harness.flow.batch import Batch, Draw
from harness.flow.method import TrainingMethod
from harness.flow.samplers import Network
from harness.flow.student import Student
from harness.runtime.random_streams import Streams
from methods.common.method import Losses, Method, MethodConfig, Needs, Setting, flow_loss
from methods.common.routed import RoutedConfig


class StackConfig(MethodConfig):
    """The settings of a stack: a table for each term, under its name."""

    @property
    def terms(self) -> dict[str, MethodConfig]:
        """The settings of each term, by name."""
        return {name: getattr(self, name) for name in self.name.split("+")}

    @property
    def strength(self) -> float:
        """1 if any term has a weight, since each has its own; else 0."""
        return float(any(term.strength for term in self.terms.values()))

    @property
    def scheduled(self) -> bool:
        """False: each term has its own schedule."""
        return False

    @property
    def until(self) -> int | None:
        return min(_ends(self.terms.values()), default=None)

    @property
    def horizon(self) -> str:
        named = ((name, term.horizon) for name, term in self.terms.items())
        return next((path.replace("method.", f"method.{name}.", 1) for name, path in named if path), "")

    def flow_weight(self, step: int) -> float:
        """Return the product of the weights that the terms give to the flow loss."""
        return math.prod(term.flow_weight(step) for term in self.terms.values())

    def encodes(self, step: int) -> bool:
        return any(term.encodes(step) for term in self.terms.values())

    def resolved(self, backbone: BackboneSpec) -> Self:
        first = next(iter(self.terms))
        if self.schedule != Schedule():
            raise ValueError(f"schedule: each term of a stack has its own; set method.{first}.schedule")
        resolved = {}
        for name, term in self.terms.items():
            try:
                resolved[name] = term.resolved(backbone)
            except ValueError as error:
                raise ValueError(f"{name}.{error}") from error
        if len(ends := _ends(resolved.values())) > 1:
            steps = " and ".join(map(str, sorted(ends)))
            raise ValueError(f"{first}.schedule.until: the terms of a stack end at one step, not at {steps}")
        return self.model_copy(update=resolved)

    def needs(self) -> Needs:
        return merged([term.needs() for term in self.terms.values()])


def _ends(terms: Iterable[MethodConfig]) -> set[int]:
    """Return the steps at which the schedules of terms end."""
    return {term.until for term in terms if term.until is not None}


def merged(needs: Sequence[Needs]) -> Needs:
    """Return the requirements of several methods together."""

    def layers(name: str) -> tuple[int, ...]:
        return tuple(sorted({layer for need in needs for layer in getattr(need, name)}))

    levels = [need.times for need in needs]
    return Needs(
        encoders=tuple(encoder for need in needs for encoder in need.encoders),
        summary=any(need.summary for need in needs),
        attention=max((need.attention for need in needs), default=0),
        teacher=any(need.teacher for need in needs),
        times=0 if 0 in levels else max(levels, default=1),
        taps=layers("taps"),
        heads=layers("heads"),
        outputs=layers("outputs"),
        # Methods that fuse blocks do not stack with each other.
        fused=next((need.fused for need in needs if need.fused), ()),
        undropped=any(need.undropped for need in needs),
        group=math.lcm(*(need.group for need in needs)),
        guided=next((need.guided for need in needs if need.guided is not None), None),
        features=max((need.features for need in needs), default=0),
    )


class Stack(Method):
    """Several objectives as one; `stack_of` makes the class of a name."""

    classes: ClassVar[dict[str, type[Method]]] = {}
    """The terms by name."""
    config: StackConfig

    def __init__(self, config: StackConfig, setting: Setting) -> None:
        super().__init__(config, setting)
        self.terms = nn.ModuleDict()
        dims = iter(setting.encoder_dims)
        for name, term in config.terms.items():
            own = tuple(itertools.islice(dims, len(term.needs().encoders)))
            self.terms[name] = self.classes[name](term, replace(self.setting, encoder_dims=own))

    def draw(self, streams: Streams, batch: Batch) -> Draw:
        """Return the draw of the term that has its own, or that of all methods, with the terms' additions."""
        owner = next((term for _, term in self._named() if type(term).draw is not Method.draw), None)
        draw = super().draw(streams, batch) if owner is None else owner.draw(streams, batch)
        for _, term in self._named():
            draw = draw if term is owner else term.draw_more(streams, batch, draw)
        return draw

    def loss(self, student: Student, batch: Batch, draw: Draw) -> Losses:
        """Return L_gen plus the weighted terms; a term without weight at this step is not computed."""
        weights = {name: term.config.weight(batch.step) for name, term in self._named()}
        active = {name: term for name, term in self._named() if weights[name]}
        prediction = self.predict(student, batch, draw, merged([term.needs() for term in active.values()]))
        parts = {"flow": flow_loss(prediction.velocity, batch, draw, self.setting)}
        total = self.weighted_flow(parts["flow"], batch.step)
        for name, term in active.items():
            parts[name] = term.align(student, self._own(name, batch), draw, prediction)
            total = total + weights[name] * parts[name]
        return Losses(total, parts)

    def velocity(
        self,
        model: Network,
        x: Tensor,
        times: Times,
        y: Condition | SharedText,
        *,
        scale: float = 1.0,
        null: Condition | SharedText | None = None,
    ) -> Tensor:
        """Return the velocity of the term that has its own, or that of the network."""
        for _, term in self._named():
            if type(term).velocity is not TrainingMethod.velocity:
                return term.velocity(model, x, times, y, scale=scale, null=null)
        return super().velocity(model, x, times, y)

    def after_step(self, student: Student, step: int) -> None:
        for _, term in self._named():
            term.after_step(student, step)

    def _own(self, name: str, batch: Batch) -> Batch:
        """Return a batch with the views of the encoders of a term."""
        views = iter(batch.views)
        for other, term in self.config.terms.items():
            own = tuple(itertools.islice(views, len(term.needs().encoders)))
            if other == name:
                return replace(batch, views=own)
        raise KeyError(name)

    def _named(self) -> Iterator[tuple[str, Method]]:
        return ((name, cast(Method, term)) for name, term in self.terms.items())


@cache
def stack_of(name: str) -> type[Stack]:
    """Return the class of a stack by its name, such as `repa+tread`.

    Raises `UserError` for terms that are unknown, repeated, in another order, or not compatible.
    """
    names = name.split("+")
    classes = {term: registry.load("method", term) for term in names}
    _check(name, names, classes)
    each = list(classes.values())
    # Any: fields of a model that is made at run time.
    tables: dict[str, Any] = {
        term: (cls.Config, Field(default_factory=cls.Config)) for term, cls in classes.items()
    }
    tables["name"] = (Literal[name], name)
    config = create_model("Config", __base__=StackConfig, **tables)
    config.off = {term: cls.Config.off for term, cls in classes.items()}
    spaces = {term: cls.Config.space for term, cls in classes.items()}
    config.space = {f"{term}.{key}": rows for term, space in spaces.items() for key, rows in space.items()}
    least, most = zip(*(cls.student_cost for cls in each), strict=True)
    fields = {
        "__module__": __name__,
        "Config": config,
        "classes": classes,
        "source": "; ".join(cls.source for cls in each),
        "parts_apart": all(cls.parts_apart for cls in each),
        "times_apart": all(cls.times_apart for cls in each),
        "parts_mixed": all(cls.parts_mixed for cls in each),
        # In a route, samples have different numbers of generated tokens to align.
        "masks_given": all(cls.masks_given and not issubclass(cls.Config, RoutedConfig) for cls in each),
        "guides": any(cls.guides for cls in each),
        "student_cost": (math.prod(least), math.prod(most)),
    }
    return type("Stack", (Stack,), fields)


def _check(name: str, names: list[str], classes: dict[str, type[Method]]) -> None:
    """Raise `UserError` unless the terms can be stacked, in this order."""
    if len(set(names)) < len(names) or "flow" in names:
        raise UserError(
            f"method.name = {name}: each term is named once, and flow is part of every stack; leave it out"
        )
    right = registry.stack_name(names)
    if right != name:
        raise UserError(f"method.name = {name}: one stack has one name; write {right}")
    for first, second in itertools.combinations(names, 2):
        if second not in classes[first].stacks_with and first not in classes[second].stacks_with:
            partners = [other for other in registry.METHODS if _are_declared(first, other)]
            known = f"{first} stacks with {', '.join(partners) or 'none'}"
            raise UserError(
                f"method.name = {name}: {first} and {second} are not declared compatible ({known})"
            )
    _check_overrides(name, classes)


def _check_overrides(name: str, classes: dict[str, type[Method]]) -> None:
    """Raise `UserError` if a stack would leave out what a term overrides.

    A stack computes the loss itself, and has the draw and the velocity of one term at most.
    """
    own = {
        "loss": [term for term, cls in classes.items() if cls.loss is not Method.loss],
        "draw": [term for term, cls in classes.items() if cls.draw is not Method.draw],
        "velocity": [term for term, cls in classes.items() if cls.velocity is not Method.velocity],
    }
    if own["loss"]:
        raise UserError(
            f"method.name = {name}: {own['loss'][0]} has a loss of another form (it overrides Method.loss), "
            "so it cannot be stacked; give it alone"
        )
    for function in ("draw", "velocity"):
        if len(terms := own[function]) > 1:
            raise UserError(
                f"method.name = {name}: {' and '.join(terms)} override Method.{function}, and one term of a "
                "stack at most may; give one of them alone"
            )


def _are_declared(first: str, second: str) -> bool:
    one, other = (registry.load("method", name) for name in (first, second))
    return second in one.stacks_with or first in other.stacks_with
