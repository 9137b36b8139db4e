"""Every error that asyncdiff raises on purpose."""


class AsyncDiffError(Exception):
    """Base class of the errors of this package."""


class ConfigurationError(AsyncDiffError, ValueError):
    """The numbers asked for (components, stride, warm-up, world size) cannot work."""


class SplitError(AsyncDiffError, ValueError):
    """The denoiser cannot be divided as asked for."""


class ModelError(AsyncDiffError, ValueError):
    """A model's files cannot be loaded, or must not be without the user's leave."""


class TraceError(AsyncDiffError, RuntimeError):
    """The data of a denoiser call could not be followed."""


class ShapeChangedError(TraceError):
    """A unit's output is of another shape than it was when the denoiser was recorded."""


class OtherUnitsError(TraceError):
    """A call of the denoiser does not run the units that ran when it was recorded."""


class LabelError(AsyncDiffError, RuntimeError):
    """The timestep label of a later step cannot be derived for this pipeline."""


class ExchangeError(AsyncDiffError, RuntimeError):
    """A tensor did not arrive from, or could not be sent to, another rank."""


class RankMismatchError(AsyncDiffError, RuntimeError):
    """The ranks were not given the same work."""


class StoppedError(ExchangeError):
    """Another rank has ended the generation: it was stopped there, or has failed."""


class BusyError(AsyncDiffError, RuntimeError):
    """Another thread, or another generator, is generating with the same denoiser."""


class NotANumberError(AsyncDiffError, ArithmeticError):
    """The noise prediction holds numbers that are none, and did not in the warm-up."""


class ProcessError(AsyncDiffError, RuntimeError):
    """A process of `Workers` has failed in a way that has no error of its own here; its traceback is the cause."""
