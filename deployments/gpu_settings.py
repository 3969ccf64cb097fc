"""What the settings of every part that may compute on a GPU have in common."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field


def _one_at_most(gpus: float) -> float:
    if gpus > 1:
        raise ValueError(f"{gpus:g} GPUs: a replica computes on one or a part of it; more need more replicas")
    return gpus


Gpus = Annotated[float, Field(ge=0), AfterValidator(_one_at_most)]


def check_device(device: str, num_gpus: float | None) -> None:
    """Raise ValueError where a replica would compute on another device than the one that it claims.

    `num_gpus` of None is a claim that is made at the start, of one GPU at most.
    """
    if device == "cpu" and num_gpus:
        raise ValueError(f"device is cpu and num_gpus {num_gpus:g}, which nobody else could use: set it to 0")
    kind, _, index = device.partition(":")
    if kind != "cuda":
        return
    if num_gpus == 0:
        raise ValueError(
            f"device is {device} and num_gpus 0, but a replica sees only the GPUs that it claims: "
            "set num_gpus, to a part of one such as 0.2 where others share it"
        )
    if index.isdecimal() and int(index) > 0:
        raise ValueError(f"device is {device}, but a replica counts the GPUs that it claims from 0: set cuda")
