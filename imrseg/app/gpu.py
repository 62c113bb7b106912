"""A GPU that is there only while a function runs: Hugging Face's ZeroGPU.

On such a Space (https://huggingface.co/docs/hub/spaces-zerogpu) the package ``spaces`` runs a decorated function in
another process, forked from this one, that has the GPU. What goes in and what comes out is pickled. So:

- Models are put on "cuda" before the page is launched. ``spaces`` makes that possible, where CUDA was not
  touched before it was imported: import this module before a model is made.
- No tensor goes in or out: ``Run`` leaves its own behind when it is pickled.
- What the function changes in its arguments stays in the other process: it must return or yield it.
- Nothing is run on the GPU outside of such a function, not even to warm it up; nothing is compiled by ``torch.compile``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import wraps
from inspect import isgeneratorfunction
from typing import Any, TypeVar

from imrseg.errors import InputError, WeightsError

F = TypeVar("F", bound=Callable[..., Any])


def on_zero_gpu() -> bool:
    """Whether this is a Space with ZeroGPU: what ``spaces`` itself goes by."""
    return os.environ.get("SPACES_ZERO_GPU", "").lower() in ("1", "t", "true")


if on_zero_gpu():
    import spaces  # noqa: F401  (its import makes "cuda" a device, before the first model asks for it)


def gpu(duration: int) -> Callable[[F], F]:
    """Decorator: the function runs with the GPU on ZeroGPU, and as it is everywhere else.

    It may be a generator function. A method must be bound before it is decorated, or its object is pickled too.
    An ``InputError`` or ``WeightsError`` arrives as what it is; ``spaces`` would keep the name alone.

    Args:
        duration: seconds of GPU time after which the call is ended. Short ones are served first.
    """

    def decorate(function: F) -> F:
        if not on_zero_gpu():
            return function
        import spaces

        if isgeneratorfunction(function):

            @spaces.GPU(duration=duration)
            def steps_there(*args: Any, **settings: Any) -> Iterator[Any]:
                try:
                    yield from function(*args, **settings)
                except (InputError, WeightsError) as error:
                    yield error

            def here(*args: Any, **settings: Any) -> Any:
                with closing(steps_there(*args, **settings)) as steps:
                    yield from map(_or_raise, steps)
        else:

            @spaces.GPU(duration=duration)
            def there(*args: Any, **settings: Any) -> Any:
                try:
                    return function(*args, **settings)
                except (InputError, WeightsError) as error:
                    return error

            def here(*args: Any, **settings: Any) -> Any:
                return _or_raise(there(*args, **settings))

        return wraps(function)(here)  # type: ignore[return-value]

    return decorate


def _or_raise(answer: Any) -> Any:
    if isinstance(answer, (InputError, WeightsError)):
        raise answer
    return answer
