"""A pipeline in processes that stay: loaded, attached and warm, used from a plain script or a notebook."""
