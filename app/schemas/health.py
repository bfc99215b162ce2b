"""Schemas of `/healthz` and `/readyz`: the health of the service itself."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from worker.jobs.domain import Precision
from worker.jobs.worker_registry import ModelState


class Health(BaseModel):
    status: Literal["alive"] = Field(
        default="alive", description="This process answers", examples=["alive"]
    )


class ServedModel(BaseModel):
    precision: Precision = Field(
        description="Of the network's weights and activations", examples=["bf16"]
    )
    kernels: str = Field(
        description="Whose kernels compute it",
        examples=["pytorch, worker/cpu_kernels.c"],
    )
    threads: int = Field(
        description="Threads of a CPU that compute a step now; 0 on a GPU", examples=[2]
    )
    seconds: dict[int, float] = Field(
        description="Seconds of a step by batch size, of the sizes that agree to the bit, as "
        "calibrated for so many threads",
        examples=[{1: 0.01, 64: 0.1}],
    )
    fingerprint: str = Field(
        description="Hash of the bits of some chains. Workers draw the same bytes if it is the "
        "same; empty from a worker that is too old to have one",
        examples=["9c1f0a7be214"],
    )
    state: ModelState = Field(
        default="loaded",
        description="`put away`: other models needed its memory, and it is loaded again when jobs "
        "of it wait",
        examples=["loaded"],
    )


class Worker(BaseModel):
    name: str = Field(description="Name of the worker", examples=["worker-1"])
    device: str = Field(description="Where it computes", examples=["cuda:0"])
    models: dict[str, ServedModel] = Field(
        description="Models that it has loaded, now or before, by name"
    )
    loading: list[str] = Field(description="Models that it is loading", examples=[["celeba-64"]])
    unserved: dict[str, str] = Field(
        description="Why it cannot load models, by name. Their jobs wait until they can be loaded",
        examples=[{"large-256": "the model 'large-256' takes 9,100 MB, ..."}],
    )
    memory_bytes: int = Field(
        description="Memory that its models take; 0 from a worker that does not say it",
        examples=[460_000_000],
    )
    memory_bound_bytes: int = Field(
        description="Memory that they may take together", examples=[8_000_000_000]
    )
    image_steps_per_s: float = Field(
        description="Rate of full batches, as measured lately", examples=[5200.0]
    )
    fault: str = Field(
        description="Why it takes no jobs; empty if it does",
        examples=["", "the results store has taken no picture for 42 s"],
    )


class Readiness(BaseModel):
    status: Literal["ready"] = Field(
        default="ready", description="Jobs are accepted and run", examples=["ready"]
    )
    workers: list[Worker] = Field(
        description="Workers that are alive; one at least takes jobs, since it has no `fault`"
    )


class ApiReadiness(BaseModel):
    status: Literal["ready"] = Field(
        default="ready",
        description="Jobs are accepted; whether they run at once is not said",
        examples=["ready"],
    )
