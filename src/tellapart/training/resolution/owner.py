"""The one owner of a run's spec, from the request to what is run."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tellapart.sections import differing
from tellapart.spec import Spec, flatten, update
from tellapart.training.resolution import by_balance, efforts, facts, from_scratch, rules
from tellapart.training.resolution.choice import Choice
from tellapart.training.resolution.facts import DataFacts, DeviceFacts, Facts, PixelFacts


class Stage(enum.IntEnum):
    """How far a spec is resolved."""

    WANTED = 0
    DATA = 1
    PIXELS = 2
    SPEED = 3


@dataclass(frozen=True)
class Resolution:
    """A spec as far as it is resolved, each choice with its reason, and the facts behind it.

    ``given``: the fields, by dotted name, that keep their values, because a person or a recipe set them; where None,
    those that differ from the defaults. Of the others, those whose value stands for an open choice ("auto", 0, empty)
    are chosen, and rules may choose further ones that belong together (such as a weight decay with its optimizer).

    Every stage returns another Resolution. A stage that comes too early raises RuntimeError.
    """

    spec: Spec
    choices: tuple[Choice, ...] = ()
    facts: Facts = field(default_factory=Facts)
    stage: Stage = Stage.WANTED
    given: frozenset[str] | None = None

    def __post_init__(self) -> None:
        if self.given is None:
            object.__setattr__(self, "given", differing(self.spec, Spec()))

    def leaves(self, field: str) -> bool:
        """Whether a field was not given, so that a rule may choose it even if its value stands for itself."""
        return field not in (self.given or ())

    @property
    def complete(self) -> bool:
        """Whether nothing is open any more."""
        return self.stage is Stage.SPEED

    @property
    def needs_pixels(self) -> bool:
        """Whether the next stage needs the statistics of the decoded images."""
        return not (self.spec.input.mean and self.spec.input.std)

    def by_data(self, data: DataFacts) -> Resolution:
        """Choose what the images, the weights and the teacher decide. Raises ModelError, SpecError, RunError."""
        self._follows(Stage.WANTED)
        now = self._with(rules.of_range(self.spec.input, data))
        now = now._with(rules.of_depth(now.spec, data))
        scratch = from_scratch.of_network(now.spec, data, self.leaves)
        now = now._with(scratch)
        now = now._with(rules.of_model(now.spec.model, data))
        automatic = self.spec.model.name == "auto" and self.spec.model.weights == "auto"
        now = now._with(efforts.of_finetune(now.spec, data, automatic))
        model = facts.of_model(now.spec.model)
        now = now._with(rules.of_input(now.spec.input, data, model))
        now = now._with(rules.of_stem(now.spec))
        if scratch:
            now = now._with(from_scratch.of_training(now.spec, data, self.leaves))
        now = now._with(rules.of_batch_size(now.spec, data))
        now = now._with(efforts.of_training(now.spec, data, self.leaves))
        now = now._with(rules.of_training(now.spec.training))
        now = now._with(
            by_balance.of_balance(now.spec, data, own_beta=not now.leaves("training.effective_beta"))
        )
        now = now._with(rules.of_labels(now.spec, data))
        now = now._with(rules.of_augment(now.spec, data))
        teacher = facts.of_teacher(now.spec.distill.teacher)
        now = now._with(rules.of_teacher(now.spec.distill, teacher))
        now = now._with(rules.of_compiling(now.spec))
        return now._at(Stage.DATA, data=data, model=model, teacher=teacher)

    def by_pixels(self, pixels: PixelFacts | None) -> Resolution:
        """Take mean and deviation from the images; ``pixels`` may be None unless `needs_pixels`."""
        self._follows(Stage.DATA)
        now = self._with(rules.of_pixels(self.spec.input, pixels))
        return now._at(Stage.PIXELS, pixels=pixels)

    def by_speed(self, device: DeviceFacts, measured: Iterable[Choice] = ()) -> Resolution:
        """Choose how to compute: as ``measured``, and what was not measured by the device and the amount of work."""
        self._follows(Stage.PIXELS, Stage.SPEED)
        now = self._with(measured)
        now = now._with(rules.of_speed(now.spec, device))
        return now._at(Stage.SPEED)  # the device's facts contain the network, and are not kept

    def by_time(self, choices: Iterable[Choice]) -> Resolution:
        """Choose the length of the run by what was measured; before or after `by_speed`."""
        self._follows(Stage.PIXELS, Stage.SPEED)
        return self._with(choices)

    def without_fit(self, reason: str) -> Resolution:
        """Let a head that was to be fitted train by steps, since the network does not allow it, for ``reason``."""
        return self._with(efforts.without_fit(self.spec, reason))

    def asking(self, changes: Mapping[str, Any]) -> Resolution:
        """Return the same with other values in fields that no choice so far depends on, such as ``training.epochs``."""
        return dataclasses.replace(self, spec=update(self.spec, changes))

    def _follows(self, *stages: Stage) -> None:
        if self.stage not in stages:
            raise RuntimeError(f"this stage follows {stages[0].name}, and the spec is at {self.stage.name}")

    def _with(self, choices: Iterable[Choice]) -> Resolution:
        """Apply choices; one that changes nothing is not recorded."""
        before = flatten(self.spec)
        new = tuple(choice for choice in choices if before[choice.field] != choice.value)
        if not new:
            return self
        changes = {choice.field: choice.value for choice in new}
        spec = update(self.spec, changes)
        old = (choice for choice in self.choices if choice.field not in changes)
        return dataclasses.replace(self, spec=spec, choices=(*old, *new))

    def _at(self, stage: Stage, **known: Any) -> Resolution:
        return dataclasses.replace(self, stage=stage, facts=dataclasses.replace(self.facts, **known))
