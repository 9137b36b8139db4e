"""The quality study: what asynchronous denoising and its competitors change in the demo pipelines' pictures."""
