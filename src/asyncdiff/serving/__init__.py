"""A service that draws pictures when it is asked over HTTP, in processes that stay."""
