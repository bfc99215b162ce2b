from __future__ import annotations

from dataclasses import replace

import pytest

from worker.jobs.domain import (
    Priority,
    Recipe,
    Shard,
    State,
    job_of,
    labels_text,
    shard_count,
    shards_of,
)

RECIPE = Recipe("tiny", "ab" * 32, "ddpm", 10, "fixed_small", 0.0, 7)


def test_a_job_is_cut_into_shards_of_64_consecutive_images() -> None:
    shards = list(shards_of("job", RECIPE, 100, 130, "local", "interactive"))
    assert [(shard.first, shard.count) for shard in shards] == [(100, 64), (164, 64), (228, 2)]
    assert [index for shard in shards for index in shard.indices] == list(range(100, 230))
    assert len(shards) == shard_count(130)


def test_only_the_first_shard_of_an_interactive_job_is_interactive() -> None:
    first, second = shards_of("job", RECIPE, 0, 65, "local", "interactive")
    assert (first.queue, second.queue) == ("interactive:tiny:local", "bulk:tiny:local")
    (bulk,) = shards_of("job", RECIPE, 0, 1, "local", "bulk")
    assert bulk.priority is Priority.BULK


def test_a_shard_is_the_same_after_json() -> None:
    (shard,) = shards_of("job", RECIPE, 3, 5, "local", "bulk")
    assert Shard.from_json(shard.to_json()) == shard
    assert "residual_variance" not in shard.to_json()["recipe"]


def test_a_recipe_has_labels_and_guidance_only_where_there_are_some() -> None:
    """A version without them refuses a shard that has them, and reads any other."""
    assert RECIPE.fields.keys().isdisjoint({"labels", "guidance"})
    assert RECIPE.passes == 10
    guided = replace(RECIPE, labels=labels_text([2, 0, 2]), guidance=2.0)
    assert (guided.fields["labels"], guided.fields["guidance"]) == ("2,0,2", 2.0)
    assert guided.passes == 20
    assert replace(RECIPE, labels=labels_text([4, 4])).fields["labels"] == "4"


def test_a_shard_has_the_labels_of_its_own_images() -> None:
    recipe = replace(RECIPE, labels=labels_text([*range(65)]))
    first, second = shards_of("job", recipe, 10, 65, "local", "bulk")
    assert first.recipe.labels_of(64) == [*range(64)]
    assert second.recipe.labels == "64"
    assert first.recipe_of(12).request(12)["label"] == 2
    assert second.recipe_of(74).labels == "64"


@pytest.mark.parametrize("change", [{"colour": "red"}, {"recipe": {"model": "tiny"}}])
def test_a_shard_of_another_version_is_a_type_error(change: dict) -> None:
    (shard,) = shards_of("job", RECIPE, 0, 1, "local", "bulk")
    with pytest.raises(TypeError):
        Shard.from_json(shard.to_json() | change)


def test_a_shard_id_names_its_job() -> None:
    (shard,) = shards_of("a-job", RECIPE, 0, 1, "local", "bulk")
    assert (shard.id, job_of(shard.id)) == ("a-job-0", "a-job")


def test_a_job_has_ended_in_every_state_but_queued_and_running() -> None:
    assert [state for state in State if not state.final] == [State.QUEUED, State.RUNNING]
