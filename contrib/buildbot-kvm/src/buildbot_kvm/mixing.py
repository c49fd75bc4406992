"""Classes that a mixin was put before, for objects of classes that have not heard of it."""

from __future__ import annotations

from typing import Any
from weakref import WeakValueDictionary

_MIXED: WeakValueDictionary[tuple[type, type], type] = WeakValueDictionary()


def mix_in(mixin: type, thing: Any) -> Any:
    """Put a mixin before the class of an object, unless it is there already; give the object.

    The class keeps its name. The same two give the same class as long as it is used: Buildbot compares an
    object of the old configuration with that of the new one by its class first.
    """
    if not isinstance(thing, mixin):
        thing.__class__ = _mixed(mixin, type(thing))
    return thing


def _mixed(mixin: type, base: type) -> type:
    mixed = _MIXED.get((mixin, base))
    if mixed is None:
        names = {"__module__": base.__module__, "__qualname__": base.__qualname__, "__doc__": base.__doc__}
        mixed = type(base)(base.__name__, (mixin, base), names)
        _MIXED[mixin, base] = mixed
    return mixed
