from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from app.records.record import Record
from app.schemas.jobs import JobError, QueuePlace
from worker.jobs.domain import Origin, Priority, Recipe, State

QUEUED = Record(
    id="0" * 32,
    owner="local",
    recipe=Recipe("tiny", "ab" * 32, "ddim", 10, "fixed_small", 0.1, 2**53 - 1),
    start=2**32 - 1024,
    count=100,
    priority=Priority.BULK,
    created_at=1_795_348_800.000001,
    done=(None, None),
)


def read(record: Record, **more: str) -> Record:
    fields = {**record.to_hash(60, Origin()), **more}
    return Record.from_hash(
        {str(name).encode(): str(value).encode() for name, value in fields.items()}
    )


def test_a_record_is_read_as_it_was_written() -> None:
    assert read(QUEUED) == QUEUED
    recipe = replace(QUEUED.recipe, variance="analytic", residual_variance="cd" * 32)
    analytic = replace(QUEUED, recipe=recipe)
    assert read(analytic) == analytic
    labels = ",".join(["3", "0"] * 50)
    guided = replace(QUEUED, recipe=replace(QUEUED.recipe, labels=labels, guidance=2.5))
    assert read(guided) == guided
    assert [guided.labels[place] for place in (0, 1, 99)] == [3, 0, 0]
    parts = [shard.recipe.labels for shard in guided.shards]
    assert parts == [",".join(["3", "0"] * 32), ",".join(["3", "0"] * 18)]


def test_a_guided_job_is_estimated_by_its_passes() -> None:
    guided = replace(
        QUEUED, recipe=replace(QUEUED.recipe, labels="1", guidance=2.5), cost_per_image_step=6
    )
    work = guided.as_posted()
    assert (work.steps, work.left, work.cost) == (20, 2000, 3)
    assert work.left * work.cost == guided.cost


def test_fields_that_workers_add_are_read_too() -> None:
    failed = read(
        QUEUED,
        state="failed",
        started_at="1.5",
        finished_at="2.5",
        p1="3,70",
        error_code="nan",
        error_message="no number",
    )
    assert failed == replace(
        QUEUED,
        state=State.FAILED,
        started_at=1.5,
        finished_at=2.5,
        done=(None, (3, 70)),
        error=JobError(code="nan", message="no number"),
    )


@given(
    st.sampled_from(State),
    st.sets(st.integers(0, 99)),
    st.booleans(),
    st.none() | st.just(QueuePlace(position=1, eta_s=None)),
    st.sampled_from(["", "3", ",".join(map(str, range(100)))]),
)
def test_a_status_is_the_job_as_its_schema_has_it(
    state: State, finished: set[int], stored: bool, queue: QueuePlace | None, labels: str
) -> None:
    recipe = replace(QUEUED.recipe, labels=labels)
    record = replace(QUEUED, recipe=recipe, state=state, started_at=1.0, done=((3, 70), None))
    digests = {b"%d" % (record.start + place): b"e3" * 32 for place in finished}
    expected = record.job(digests, stored, queue, 3.0).model_dump_json()
    assert record.json(digests, stored, queue, 3.0).decode() == expected


SHARD_PROGRESS = st.none() | st.tuples(st.integers(0, 10), st.integers(0, 640))


@given(st.lists(SHARD_PROGRESS, min_size=2, max_size=2), st.sampled_from(State))
def test_progress_is_a_share_of_the_whole(done: list[tuple[int, int] | None], state: State) -> None:
    record = replace(QUEUED, state=state, started_at=1.0, done=tuple(done))
    progress = record.summary(images_done=0, now=3.0).progress
    assert 0 <= progress.fraction <= 1
    assert 0 <= progress.step <= progress.steps == 10
    assert progress.images_per_s == round(progress.fraction * 100 / 2, 3)
    assert state is not State.FINISHED or progress.fraction == 1
