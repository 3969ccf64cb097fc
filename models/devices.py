"""Which device a model computes on."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from graph.errors import InvalidInput

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)


def choose_device(wanted: str) -> torch.device:
    """The device of that name; "auto" is CUDA when it works, else the CPU, with a warning when it is broken.

    Raises InvalidInput for a device that is asked for and is not there.
    """
    import torch

    if wanted == "auto":
        if not torch.cuda.is_available():
            return torch.device("cpu")
        try:
            torch.zeros(1, device="cuda").item()  # waits, as a kernel that cannot run fails late
        except (RuntimeError, AssertionError) as error:
            log.warning("there is a CUDA device, but it does not work; going on on the CPU: %s", error)
            return torch.device("cpu")
        return torch.device("cuda")
    try:
        device = torch.device(wanted)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise InvalidInput(f"device is {wanted[:80]!r}; use auto, cpu, cuda or cuda:N", param="device")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InvalidInput(
            f"device is {wanted!r}, but {torch.cuda.device_count()} CUDA devices can be used here; "
            "use auto or cpu",
            param="device",
        )
    return device
