"""What a visitor has chosen: how to run, and what to look at."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from imrseg.app.sessions import Finding, Scene, Session
from imrseg.app.words import split_labels
from imrseg.run import Options


@dataclass(frozen=True)
class Settings:
    """What a run is made with beside its pictures, in the order of ``layout.Inputs.settings``."""

    label: str
    steps: int
    preset: str
    coarse: str
    distractors: str
    prompts: str
    edges: str
    edges_on: str
    consensus: str
    device: str

    @property
    def labels(self) -> list[str]:
        return split_labels(self.label) or [""]

    @property
    def models(self) -> tuple[str, str, str]:
        """What ``Models.get`` takes."""
        return self.preset, self.coarse, self.device

    @property
    def options(self) -> Options:
        return Options(
            None, split_labels(self.distractors), self.prompts, self.edges or None, self.edges_on, self.consensus
        )


@dataclass(frozen=True, eq=False)
class Look:
    """What of a session is looked at, and how.

    Attributes:
        session: one that is not forgotten.
        number: of the query among its scenes.
        label: one that was looked for in this query.
        step: may be ahead of a run that was stopped; ``shown`` is not.
        view: one of ``layout.VIEWS``.
        threshold: in [0, 1].
        support: 0, 1, ...
    """

    session: Session
    number: int
    label: str
    step: int
    view: str
    threshold: float
    support: int = 0

    @classmethod
    def at(
        cls,
        session: Session,
        query: str | None,
        label: str | None,
        step: int,
        view: str,
        threshold: float,
        support: int | None,
    ) -> Look:
        """From ``layout.Choices``, in its order; of a query or label that is not there the first is looked at."""
        number = session.scene(query)
        finding = session.scenes[number].finding(label)
        return cls(session, number, finding.label, step, view, threshold, support or 0)

    @property
    def scene(self) -> Scene:
        return self.session.scenes[self.number]

    @property
    def finding(self) -> Finding:
        return self.scene.finding(self.label)

    @property
    def query(self) -> str:
        return self.session.names()[self.number]

    @property
    def last(self) -> int:
        """The last step that there is."""
        return len(self.finding.steps) - 1

    @property
    def shown(self) -> int:
        return min(self.step, self.last)

    def but(self, **changed: Any) -> Look:
        return replace(self, **changed)

    def having(self, scene: Scene) -> Look:
        """The same in a session with ``scene`` in the place of the one that is looked at."""
        return replace(self, session=self.session.having(self.number, scene))
