"""Named errors."""


class LcsUnavailableError(RuntimeError):
    """No compiled kernel, and no way to build one here."""


class LcsBuildError(LcsUnavailableError):
    """The C++ sources could not be built."""
