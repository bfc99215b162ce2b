"""The names of the keys in the job store, and what they hold.

Those that are not RQ's begin with `PREFIX`, which is `ddpm:` unless DDPM_KEY_PREFIX says otherwise.
A job has four keys, each of which expires. The reaper prolongs those of an open job:

    ddpm:job:<id>         hash: the request, the state, times, the error; `p<k>` is the progress of
                          shard k, and `k<k>` the image-steps of it that are saved; `fingerprint` of
                          the workers that draw it, and `uniform` 0 if others drew some of it
    ddpm:job:<id>:sha256  hash: image index -> sha256 of its PNG, one field for a finished image
    ddpm:job:<id>:png     hash: image index -> PNG, unless the worker has a results store
                          (worker/results/store.py)
    ddpm:job:<id>:chains  hash: shard number -> where its unfinished chains lie as a worker last
                          saved them: `BUNDLE_REFERENCE` and the id of a bundle, or nothing if they
                          lie in the results store; deleted when the job ends

A bundle is one save of the chains of many small shards, or of one large shard:

    ddpm:bundle:<id>      hash: `left` is the number of shards whose last save it is, `pieces` the
                          number of its pieces, and `0`, `1`, ... are the pieces; deleted when no
                          shard is left

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

import os
from hashlib import sha256

DEFAULT_PREFIX = "ddpm:"
# Read when this module is imported, as scripts and names are constants. The settings of the API and
# of workers check it (worker/jobs/redis_url.py), and docs/decisions/0035 says why.
PREFIX = os.environ.get("DDPM_KEY_PREFIX") or DEFAULT_PREFIX
# Before the names of our RQ queues, which have none under the default prefix.
QUEUE_NAMES = "" if PREFIX == DEFAULT_PREFIX else PREFIX

# Hash: open job -> "<image-steps left to run, times their cost> <count> <steps> <model> <owner>".
# The cost is the field `cost` of the job's record, or 1 (Card.cost_per_image_step).
LEFT = f"{PREFIX}left"
# Hash: owner -> sum of that over all its open jobs. It empties itself, and so does LEFT.
LOAD = f"{PREFIX}load"
# Hash: job whose images are kept -> "<bytes> <owner>" (lua/shared/kept.lua).
KEPT = f"{PREFIX}kept"
# Hash: owner -> sum of that over all its jobs. It empties itself, and so does KEPT.
KEPT_BY_OWNER = f"{PREFIX}kept:owners"
# Sorted set: job -> when its images are gone; looked at again then, if the job is open.
KEPT_UNTIL = f"{PREFIX}kept:until"
# Channel: "<job> <state>" of each change of a job's state.
CHANGES = f"{PREFIX}changes"
# Channel: "<job> <index>" of an unfinished image that a client would like to see.
PREVIEWS = f"{PREFIX}previews"
PREVIEW_LIVES_MS = 500
# Channel: "<worker>\n<rotation>\n..." of a worker that has found nothing in these rotations.
IDLE = f"{PREFIX}idle"
# Sorted set: job -> when its objects in the results store are to be removed. It empties itself.
EXPIRING = f"{PREFIX}expiring"
# Sorted set: job that has ended, until an API notices that its webhook is due -> when it ended.
# The webhooks of jobs that were noticed are in the lanes of lua/shared/webhook_lanes.lua.
WEBHOOKS = f"{PREFIX}webhooks"
# Sorted set: owner -> when the first of the owner's webhooks is due.
WEBHOOK_OWNERS = f"{PREFIX}webhooks:owners"
# Sorted set for each owner: receiver, as the URLs have it -> when the first webhook to it is due.
WEBHOOK_RECEIVERS_PREFIX = f"{PREFIX}webhooks:of:"
# Sorted set for each owner and receiver, "<owner>:<receiver>": job -> when its webhook is due. Like
# those before, it empties itself.
WEBHOOK_LANE_PREFIX = f"{PREFIX}webhooks:to:"
# Hash: model -> image-steps a second of one worker, as last measured (app/operation/waiting.py).
PACES = f"{PREFIX}paces"
# Sorted set: "<shard>:<execution>" -> when the lease lapses, by LEASE_CLOCK.
LEASES = f"{PREFIX}leases"
# Hash: `time` of the leases, and when it was `seen` last, in the server's time
# (lua/shared/lease_clock.lua).
LEASE_CLOCK = f"{PREFIX}lease-clock"
# Set: shards that lost every worker, until their jobs have been failed. It empties itself.
FAILED_SHARDS = f"{PREFIX}failed"
# Hash: RQ queue -> stones in it: ids of withdrawn shards (lua/shared/waiting.lua).
STONES = f"{PREFIX}stones"
# Hash: worker's name -> when the entry lapses, and JSON of its WorkerInfo (worker_registry.py).
WORKERS = f"{PREFIX}workers"
# String that readiness probes write, to see that the server takes writes. It expires at once.
PROBE = f"{PREFIX}probe"
# String: there while a worker loads its models or measures its machine (worker_registry.py).
STARTING = f"{PREFIX}starting"

# Hash: worker's name -> JSON of its WorkerCounters, for as long as it lives.
WORKER_COUNTERS = f"{PREFIX}workers:counters"
# Hash: what happened -> how often: "job <state> <error's code or -> <class> <model>",
# "loss <outcome>" of a shard, "webhook <outcome>" of an attempt. It stays for good.
COUNTS = f"{PREFIX}counts"

# RQ's keys, as RQ names them: the set of its queues' keys, and what comes before the name of a
# queue, a job or an execution. A started job's score in RQ's set is +inf, which RQ never cleans.
QUEUES = "rq:queues"
QUEUE_PREFIX = "rq:queue:"
STARTED_PREFIX = "rq:wip:"
SHARD_PREFIX = "rq:job:"
EXECUTION_PREFIX = "rq:execution:"
EXECUTIONS_PREFIX = "rq:executions:"
RECORD_PREFIX = f"{PREFIX}job:"
JOBS_PREFIX = f"{PREFIX}jobs:"
BUNDLE_PREFIX = f"{PREFIX}bundle:"
# What the field of a shard in `chains_key` begins with if its chains lie in a bundle.
BUNDLE_REFERENCE = "bundle:"
# Sorted set for each class and model: owner whose shards wait -> turn. It empties itself.
ROTATION_PREFIX = f"{PREFIX}rotation:"


def job_key(job: str) -> str:
    """Return the key of a job's record."""
    return f"{PREFIX}job:{job}"


def sha256_key(job: str) -> str:
    """Return the key of the hashes of a job's finished images."""
    return f"{PREFIX}job:{job}:sha256"


def png_key(job: str) -> str:
    """Return the key of a job's PNGs."""
    return f"{PREFIX}job:{job}:png"


def chains_key(job: str) -> str:
    """Return the key of a job's saved chains."""
    return f"{PREFIX}job:{job}:chains"


def bundle_key(bundle: str) -> str:
    """Return the key of a bundle of saved chains."""
    return f"{BUNDLE_PREFIX}{bundle}"


def preview_key(job: str, index: int | str) -> str:
    """Return the key of a preview: a string, the PNG of x_0_hat, which expires at once."""
    return f"{PREFIX}job:{job}:preview:{index}"


def preview_asked_key(job: str, index: int) -> str:
    """Return the key that exists while nobody else asks the workers for this preview."""
    return f"{preview_key(job, index)}:asked"


def owner_key(owner: str) -> str:
    """Return the key of an owner's jobs: a sorted set by time of creation."""
    return f"{JOBS_PREFIX}{owner}"


def state_key(owner: str, state: str) -> str:
    """Return the key of an owner's jobs in a state: a sorted set by time of creation.

    An owner's name has no colon.
    """
    return f"{JOBS_PREFIX}{owner}:{state}"


def open_key(priority: str) -> str:
    """Return the key of the jobs that have not ended: a sorted set by time of creation."""
    return f"{PREFIX}open:{priority}"


def idempotency_key(owner: str, key: str) -> str:
    """Return the key of an Idempotency-Key, in which any characters may be.

    It is a string, "<job> <hash of the request>", that lives as long as the job's record.
    """
    return f"{PREFIX}idempotency:{owner}:{sha256(key.encode()).hexdigest()}"


def take_key(worker: str) -> str:
    """Return the key of a worker's last take: a string, its number and the ids of its shards."""
    return f"{PREFIX}take:{worker}"


def rotation_name(priority: str, model: str) -> str:
    """Return the name of the rotation of owners whose shards of a priority and a model wait."""
    return f"{QUEUE_NAMES}{priority}:{model}"


def queue_name(priority: str, model: str, owner: str) -> str:
    """Return the name of the RQ queue for an owner's shards of a priority and a model."""
    return f"{QUEUE_NAMES}{priority}:{model}:{owner}"


def progress_field(shard: int) -> str:
    """Return the field of a job's record that holds a shard's progress.

    Its value is "<step of the least advanced image>,<image-steps done>".
    """
    return f"p{shard}"
