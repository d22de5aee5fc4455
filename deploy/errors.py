"""The errors that a user can cause, all in one tree.

Each message is one line that states the law, what came, what was expected and what to do. The command line prints it
without a traceback and ends with exit code 1, for GateError with 3.

    SlimdetError
    ├── InputError        a file, picture, stream or setting that came from outside cannot be used
    │   └── ContractError a .tflite whose metadata is missing, or contradicts its tensors
    ├── BackendError      the interpreter or delegate that was asked for is not to be had
    ├── DeviceError       another machine cannot be reached, prepared or used, or failed
    ├── GraphError        a graph that cannot be built, read or changed as asked
    ├── ConversionError   the converter or the quantizer refused, or died
    ├── VerificationError the .tflite does not compute what the model computes
    └── GateError         a figure that was measured misses the limit that was set for it
"""


class SlimdetError(Exception):
    """Base of every error whose cause is on the user's side; its text is one clear sentence."""


class InputError(SlimdetError):
    """A file, picture, stream or setting that came from outside cannot be used."""


class ContractError(InputError):
    """A .tflite whose metadata is missing, or contradicts its tensors."""


class BackendError(SlimdetError):
    """The interpreter or delegate that was asked for is not to be had, with the reason."""


class DeviceError(SlimdetError):
    """Another machine cannot be reached, prepared or used, or what ran on it failed."""


class GraphError(SlimdetError):
    """A graph that cannot be built, read or changed as asked."""


class ConversionError(SlimdetError):
    """The converter or the quantizer refused the model, or its process died."""


class VerificationError(SlimdetError):
    """The .tflite differs from the model it was made of by more than its bound."""


class GateError(SlimdetError):
    """A figure that was measured misses the limit that was set for it, or cannot be told from it."""
