"""Which processor to compute on."""

from course.errors import UsageError


def choose(name: str = "auto") -> str:
    """`auto`: a CUDA GPU if there is one, then Apple's, then the CPU. Raises UsageError for one that is not there."""
    import torch
    if name == "auto":
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UsageError(f"device {name!r} cannot be used: {str(error).splitlines()[0]}") from None
    return name
