"""The models that a worker has in memory: they come and go while other threads read."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

from worker.jobs.domain import Recipe
from worker.process.loaded_model import LoadedModel


class Version(NamedTuple):
    """A model's name, and the sha256 of the weights that a job was accepted with."""

    name: str
    weights: str

    @classmethod
    def of(cls, recipe: Recipe) -> Version:
        """Return what a recipe asks for."""
        return cls(recipe.model, recipe.weights)


class ServedModels(Mapping[str, LoadedModel]):
    """The models in memory, by name.

    Older weights of a name stand under `name@` and the first digits of their hash. Changes make a
    new dictionary, so that whoever iterates meanwhile sees the models from before.

    Attributes:
        leaving: keys of models that take no more shards, as others need their memory.
        gone: names that are offered no more, though jobs of them may wait.
    """

    def __init__(
        self,
        models: Mapping[str, LoadedModel],
        is_offered: Callable[[Version], bool] | None = None,
    ) -> None:
        """Take the models that were loaded at the start.

        Args:
            models: by name.
            is_offered: tells whether the worker can load a version that it does not have. None: it
                has all that there are.
        """
        self._models = dict(models)
        self._is_offered = is_offered
        self._asked: set[Version] = set()
        self._lock = threading.Lock()
        self.leaving: frozenset[str] = frozenset()
        self.gone: frozenset[str] = frozenset()

    def __getitem__(self, name: str) -> LoadedModel:
        return self._models[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._models)

    def __len__(self) -> int:
        return len(self._models)

    def add(self, name: str, model: LoadedModel) -> None:
        """Have another model. One of older weights under the same name stays beside it."""
        models = dict(self._models)
        older = models.pop(name, None)
        if older is not None:
            models[older_key(name, older.card.sha256)] = older
        self._models = {**models, name: model}

    def add_older(self, model: LoadedModel) -> None:
        """Have a model of weights that were replaced or removed."""
        key = older_key(model.card.name, model.card.sha256)
        self._models = {**self._models, key: model}

    def remove(self, key: str) -> None:
        """Have a model no more."""
        self._models = {k: model for k, model in self._models.items() if k != key}

    def key_of(self, version: Version) -> str | None:
        """Return the key of a version in memory; None if it is not there."""
        for key, model in self._models.items():
            if (model.card.name, model.card.sha256) == version:
                return key
        return None

    def find(self, recipe: Recipe) -> LoadedModel | None:
        """Return the model that a recipe asks for; None if it is not in memory.

        Where nothing else is offered, the model of that name has to do: it says itself what is
        wrong with the recipe.
        """
        models = self._models
        model = models.get(recipe.model)
        if model is not None and (self._is_offered is None or model.card.sha256 == recipe.weights):
            return model
        return models.get(older_key(recipe.model, recipe.weights))

    def taking(self) -> dict[str, LoadedModel]:
        """Return the models that take shards, one for each name."""
        return {model.card.name: model for key, model in self._taking() if "@" in key} | {
            key: model for key, model in self._taking() if "@" not in key
        }

    def _taking(self) -> Iterable[tuple[str, LoadedModel]]:
        leaving = self.leaving
        return [(key, model) for key, model in self._models.items() if key not in leaving]

    def is_offered(self, version: Version) -> bool:
        """Tell whether the worker can load a version."""
        return self._is_offered is not None and self._is_offered(version)

    def ask_for(self, version: Version) -> None:
        """Note that a shard of a version was met that is not in memory. The intake calls this."""
        with self._lock:
            self._asked.add(version)

    def asked(self) -> set[Version]:
        """Return the versions that were asked for since the last call."""
        with self._lock:
            asked, self._asked = self._asked, set()
        return asked


def older_key(name: str, weights: str) -> str:
    """Return the key of older weights of a name. No name has an @."""
    return f"{name}@{weights[:12]}"
