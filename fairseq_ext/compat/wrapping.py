"""Wraps functions of fairseq: ours is called in their place, and calls them."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

__all__ = ["wrapping"]


def wrapping(owner: Any, name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Put the decorated function in the place of ``owner.name``; it gets the original as its first argument.

    Args:
        owner: a module, or a class.
        name: name of a function, a method or a static method.

    Example:
        >>> @wrapping(checkpoint_utils, "load_checkpoint_to_cpu")
        ... def load(upstream, path, *args, **kwargs):
        ...     logger.info("%s is read", path)
        ...     return upstream(path, *args, **kwargs)
    """
    upstream = getattr(owner, name)

    def place(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(upstream)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            return function(upstream, *args, **kwargs)

        static = isinstance(inspect.getattr_static(owner, name), staticmethod)
        setattr(owner, name, staticmethod(wrapped) if static else wrapped)
        return wrapped

    return place
