"""ComfyUI nodes that draw by a service of asyncdiff: this folder is linked into `custom_nodes`."""

from .nodes import AsyncDiffSampler, AsyncDiffService, AsyncDiffSettings

NODE_CLASS_MAPPINGS = {node.__name__: node for node in (AsyncDiffService, AsyncDiffSettings, AsyncDiffSampler)}
NODE_DISPLAY_NAME_MAPPINGS = {
    "AsyncDiffService": "AsyncDiff Service",
    "AsyncDiffSettings": "AsyncDiff Settings",
    "AsyncDiffSampler": "AsyncDiff Sampler",
}

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]
