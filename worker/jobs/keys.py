"""The names of the keys in the job store, and what they hold.

A job has four keys, each of which expires:

    ddpm:job:<id>         hash: the request, the state, times, the error; `p<k>` is the progress of
                          shard k, and `k<k>` the image-steps of it that are saved
    ddpm:job:<id>:sha256  hash: image index -> sha256 of its PNG, one field for a finished image
    ddpm:job:<id>:png     hash: image index -> PNG, unless the worker has a results store
                          (worker/results/store.py)
    ddpm:job:<id>:chains  hash: shard number -> its unfinished chains as a worker last saved them,
                          empty if they lie in the results store; deleted when the job ends

While clients look at its unfinished images, it also has keys that live for half a second:
`preview_key` and `preview_asked_key`.

A job is finished when every image has its hash. There is no counter that a crash between two
writes could leave wrong.

A job is running while a worker holds a shard of it. When the last of its shards is lost or given
back, the job is queued again (worker/jobs/lua/shared/requeue.lua). What a late worker still reports
of it counts all the same, because its images have the same bytes.

Every change of state is one script of worker/jobs/transitions.py. It publishes "<id> <state>" on
`CHANGES`.
"""

from __future__ import annotations

from hashlib import sha256

# Hash: open job -> "<image-steps left to run> <count> <steps> <model> <owner>".
LEFT = "ddpm:left"
# Hash: owner -> image-steps left of all its open jobs. It empties itself, and so does LEFT.
LOAD = "ddpm:load"
# Channel: "<job> <state>" of each change of a job's state.
CHANGES = "ddpm:changes"
# Channel: "<job> <index>" of an unfinished image that a client would like to see.
PREVIEWS = "ddpm:previews"
PREVIEW_LIVES_MS = 500
# Sorted set: job -> when its objects in the results store are to be removed. It empties itself.
EXPIRING = "ddpm:expiring"
# Sorted set: job that has ended -> when its webhook is to be sent next. It empties itself.
WEBHOOKS = "ddpm:webhooks"
# Hash: model -> image-steps a second of one worker, as last measured (app/operation/waiting.py).
PACES = "ddpm:paces"
# Sorted set: "<shard>:<execution>" -> when the lease lapses, in the server's time.
LEASES = "ddpm:leases"
# Set: shards that lost every worker, until their jobs have been failed. It empties itself.
FAILED_SHARDS = "ddpm:failed"
# Hash: RQ queue -> stones in it: ids of withdrawn shards (lua/shared/waiting.lua).
STONES = "ddpm:stones"
# Hash: worker's name -> when the entry lapses, and JSON of its WorkerInfo (worker_registry.py).
WORKERS = "ddpm:workers"

# RQ's keys, as RQ names them: the set of its queues' keys, and what comes before the name of a
# queue, a job or an execution. A started job's score in RQ's set is +inf, which RQ never cleans.
QUEUES = "rq:queues"
QUEUE_PREFIX = "rq:queue:"
STARTED_PREFIX = "rq:wip:"
SHARD_PREFIX = "rq:job:"
EXECUTION_PREFIX = "rq:execution:"
EXECUTIONS_PREFIX = "rq:executions:"
RECORD_PREFIX = "ddpm:job:"
# Sorted set for each class and model: owner whose shards wait -> turn. It empties itself.
ROTATION_PREFIX = "ddpm:rotation:"


def job_key(job: str) -> str:
    """Return the key of a job's record."""
    return f"ddpm:job:{job}"


def sha256_key(job: str) -> str:
    """Return the key of the hashes of a job's finished images."""
    return f"ddpm:job:{job}:sha256"


def png_key(job: str) -> str:
    """Return the key of a job's PNGs."""
    return f"ddpm:job:{job}:png"


def chains_key(job: str) -> str:
    """Return the key of a job's saved chains."""
    return f"ddpm:job:{job}:chains"


def preview_key(job: str, index: int | str) -> str:
    """Return the key of a preview: a string, the PNG of x_0_hat, which expires at once."""
    return f"ddpm:job:{job}:preview:{index}"


def preview_asked_key(job: str, index: int) -> str:
    """Return the key that exists while nobody else asks the workers for this preview."""
    return f"{preview_key(job, index)}:asked"


def owner_key(owner: str) -> str:
    """Return the key of an owner's jobs: a sorted set by time of creation."""
    return f"ddpm:jobs:{owner}"


def open_key(priority: str) -> str:
    """Return the key of the jobs that have not ended: a sorted set by time of creation."""
    return f"ddpm:open:{priority}"


def idempotency_key(owner: str, key: str) -> str:
    """Return the key of an Idempotency-Key, in which any characters may be.

    It is a string, "<job> <hash of the request>", that lives as long as the job's record.
    """
    return f"ddpm:idempotency:{owner}:{sha256(key.encode()).hexdigest()}"


def take_key(worker: str) -> str:
    """Return the key of a worker's last take: a string, its number and the ids of its shards."""
    return f"ddpm:take:{worker}"


def rotation_name(priority: str, model: str) -> str:
    """Return the name of the rotation of owners whose shards of a priority and a model wait."""
    return f"{priority}:{model}"


def queue_name(priority: str, model: str, owner: str) -> str:
    """Return the name of the RQ queue for an owner's shards of a priority and a model."""
    return f"{priority}:{model}:{owner}"


def progress_field(shard: int) -> str:
    """Return the field of a job's record that holds a shard's progress.

    Its value is "<step of the least advanced image>,<image-steps done>".
    """
    return f"p{shard}"
