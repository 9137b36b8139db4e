"""Which versions of the packages are at work."""

import importlib.metadata

NOT_INSTALLED = "none, it is not installed"


def version_of(package: str) -> str:
    """As it was installed; a package may also be imported from a folder, such as a checkout of this one."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return NOT_INSTALLED
