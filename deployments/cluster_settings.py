"""The group of settings about the Ray cluster that the application runs on."""

from __future__ import annotations

from pydantic import Field, model_validator

from deployments.setting_groups import Group


class ClusterSettings(Group):
    """The Ray cluster, where its nodes are not all there when the service starts."""

    grows: bool = Field(
        False,
        description="Nodes are still to come: what no node has yet is waited for instead of refused.",
    )
    max_gpu_nodes: int = Field(
        0, ge=0, description="GPU nodes there are at most once it has grown; what needs more is refused."
    )
    gpus_per_node: int = Field(1, ge=1, le=16, description="GPUs of each of them.")

    @model_validator(mode="after")
    def _only_when_it_grows(self) -> ClusterSettings:
        if self.max_gpu_nodes and not self.grows:
            raise ValueError("max_gpu_nodes counts nodes that are still to come: set grows to true")
        return self
