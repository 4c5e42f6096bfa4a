"""What a kernel refuses: shapes that do not fit, and what no kernel here computes rightly."""


class KernelError(ValueError):
    """A call that a kernel refuses; the message is one sentence naming the offending thing."""


class ShapeError(KernelError):
    """Two arguments whose shapes do not fit; the message names both."""


class UnsupportedError(KernelError):
    """A provider, device, dtype or precision that does not exist or is not computed rightly here."""
