"""Schemas of `/healthz` and `/readyz`: the health of the service itself."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from worker.jobs.domain import Precision


class Health(BaseModel):
    status: Literal["alive"] = Field(
        default="alive", description="This process answers", examples=["alive"]
    )


class ServedModel(BaseModel):
    precision: Precision = Field(
        description="Of the network's weights and activations", examples=["bf16"]
    )
    kernels: str = Field(
        description="Whose kernels compute it: with precision and device they decide the last bits",
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


class Worker(BaseModel):
    name: str = Field(description="Name of the worker", examples=["worker-1"])
    device: str = Field(description="Where it computes", examples=["cuda:0"])
    models: dict[str, ServedModel] = Field(description="Models that it has loaded, by name")
    image_steps_per_s: float = Field(
        description="Rate of full batches, as measured lately", examples=[5200.0]
    )


class Readiness(BaseModel):
    status: Literal["ready"] = Field(
        default="ready", description="Jobs are accepted and run", examples=["ready"]
    )
    workers: list[Worker] = Field(description="Workers that are alive")
