"""Names of the keys in the job store, and what lies there. Knows no torch.

A job is four keys, all gone after their TTL:

    ddpm:job:<id>         hash: what was asked for, state, times, error; `p<k>` is shard k's progress, `k<k>` what of it is saved
    ddpm:job:<id>:sha256  hash: image index -> sha256 of its PNG, one field an image that is finished
    ddpm:job:<id>:png     hash: image index -> PNG, unless the worker has a results store (worker/results/store.py)
    ddpm:job:<id>:chains  hash: shard -> its unfinished chains as a worker last saved them; empty: they lie in the results
                          store. Gone when the job ends

While clients look at its unfinished images it has keys that live for half a second: `preview_key`, `preview_asked_key`.

A job is finished when every image has its hash: there is no counter that a crash between two writes could leave wrong.
A job is running while a worker holds a shard of it; when the last of them is lost or given back, it is queued again
(worker/jobs/scripts.py). What a late worker still has to say of it is heard all the same: its images have the same bytes.
Every change of state is one script in transitions.py, published on `CHANGES` as "<id> <state>".
"""

from __future__ import annotations

from hashlib import sha256

LEFT = "ddpm:left"  # hash: open job -> "<image-steps left to run> <count> <steps> <model> <owner>"
LOAD = "ddpm:load"  # hash: owner -> image-steps left of all its open jobs. Both empty themselves
CHANGES = "ddpm:changes"
PREVIEWS = (
    "ddpm:previews"  # channel: "<job> <index>" of an image that somebody would like to see as it is
)
PREVIEW_LIVES_MS = 500
EXPIRING = "ddpm:expiring"  # sorted set: job -> when what the results store holds of it is to be removed; it empties itself
WEBHOOKS = "ddpm:webhooks"  # sorted set: job that has ended -> when its webhook is to be sent next; it empties itself
# hash: model -> image-steps a second of one worker, as last measured (app/operation/waiting.py)
PACES = "ddpm:paces"
WORKERS = "ddpm:workers"  # hash: worker name -> when it lapses, and JSON of WorkerInfo (worker/jobs/worker_registry.py)

# For scripts: the Lua function `now()`, in seconds since the epoch. What hosts compare is the job store's time: theirs differ.
NOW = """
local function now() local time = redis.call('TIME'); return time[1] + time[2] / 1000000 end
"""


def job_key(job: str) -> str:
    return f"ddpm:job:{job}"


def sha256_key(job: str) -> str:
    return f"ddpm:job:{job}:sha256"


def png_key(job: str) -> str:
    return f"ddpm:job:{job}:png"


def chains_key(job: str) -> str:
    return f"ddpm:job:{job}:chains"


def preview_key(job: str, index: int | str) -> str:
    """String: a PNG of x_0_hat. It goes by itself at once."""
    return f"ddpm:job:{job}:preview:{index}"


def preview_asked_key(job: str, index: int) -> str:
    """String: while it is there, nobody else asks the workers for this preview."""
    return f"{preview_key(job, index)}:asked"


def owner_key(owner: str) -> str:
    """Sorted set of an owner's jobs by time of creation."""
    return f"ddpm:jobs:{owner}"


def open_key(priority: str) -> str:
    """Sorted set of the jobs that have not ended, by time of creation."""
    return f"ddpm:open:{priority}"


def idempotency_key(owner: str, key: str) -> str:
    """String: "<job> <what was asked for, hashed>", for as long as the job's record. Any characters may be in `key`."""
    return f"ddpm:idempotency:{owner}:{sha256(key.encode()).hexdigest()}"


def queue_name(priority: str, model: str) -> str:
    return f"{priority}:{model}"


def progress_field(shard: int) -> str:
    """Field of the job's hash; its value is "<step of the least advanced image>,<image-steps done>"."""
    return f"p{shard}"
