"""From optimizers and schedules to plain data and back: ``{"class_name": "SGD", "config": {...}}``."""

from collections.abc import Mapping
from typing import Any, TypeVar

Class = TypeVar("Class", bound=type[Any])

_registered: dict[str, type[Any]] = {}  # by name in lower case


def register(cls: Class) -> Class:
    """Make a class known by its name to :func:`deserialize` and :func:`get`; a decorator.

    Args:
        cls: an optimizer, a schedule, or another class with ``get_config`` and ``from_config``.

    Raises:
        TypeError: it is no class with ``from_config``.
        ValueError: another class has this name, in whatever case.

    >>> import fusedstep
    >>> @fusedstep.register
    ... class Halving(fusedstep.LearningRateSchedule):
    ...     def __call__(self, step):
    ...         return 0.5**step
    >>> fusedstep.SGD(learning_rate={"class_name": "Halving", "config": {}}).learning_rate
    1.0
    """
    if not isinstance(cls, type) or not hasattr(cls, "from_config"):
        raise TypeError(f"register: must be a class with from_config, got {cls!r}")
    other = _registered.get(cls.__name__.lower(), cls)
    # A cell of a notebook that runs again makes its class anew.
    if (other.__module__, other.__qualname__) != (cls.__module__, cls.__qualname__):
        raise ValueError(
            f"register: the name '{cls.__name__}' is that of {other!r}, got {cls!r}; rename one,"
            " or pass yours as custom_objects"
        )
    _registered[cls.__name__.lower()] = cls
    return cls


def registered(base: type[Any] = object) -> list[str]:
    """Return the names of the known classes that derive from a base."""
    return [cls.__name__ for cls in _registered.values() if issubclass(cls, base)]


def serialize(thing: Any) -> dict[str, Any]:
    """Return an optimizer or a schedule as plain data, of which JSON can be made.

    Returns:
        ``{"class_name": ..., "config": ...}``, of dicts, lists, strings, numbers, True, False and None.

    Raises:
        TypeError: it has no ``get_config``, or a value in it is not plain, as a learning rate that is a
            function.

    >>> import fusedstep
    >>> fusedstep.serialize(fusedstep.schedules.CosineDecay(0.1, decay_steps=100))["class_name"]
    'CosineDecay'
    """
    if isinstance(thing, type) or not hasattr(thing, "get_config"):
        raise TypeError(
            f"serialize: must be an optimizer or a schedule, with get_config, got {thing!r};"
            " write a function as a subclass of LearningRateSchedule"
        )
    who = type(thing).__name__
    config = {name: plain(value, f"{who}'s {name}") for name, value in thing.get_config().items()}
    return {"class_name": who, "config": config}


def plain(value: Any, what: str) -> Any:
    """Return a value of a configuration as plain data; ``what`` names it where it cannot be."""
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain(child, f"{what}[{key!r}]") for key, child in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(child, f"{what}[{position}]") for position, child in enumerate(value)]
    if hasattr(value, "get_config") and not isinstance(value, type):
        return serialize(value)
    if hasattr(value, "tolist"):  # NumPy's scalars and arrays
        return plain(value.tolist(), what)
    raise TypeError(
        f"serialize: {what} must be plain data or a schedule, got {value!r}; for a learning rate use one of"
        " fusedstep.schedules or a subclass of LearningRateSchedule, or set a number before"
    )


def deserialize(config: Mapping[str, Any], custom_objects: Mapping[str, type[Any]] | None = None) -> Any:
    """Make an optimizer or a schedule of what :func:`serialize` returned.

    Args:
        config: a dict with ``class_name`` and ``config``, itself perhaps with such dicts in it. Keras'
            own are of this form too; other keys are not looked at.
        custom_objects: classes by name, besides this package's and those of :func:`register`.

    Raises:
        TypeError: it is no dict, or the class does not take an argument that the configuration has.
        ValueError: it has no class name, no class has the name, or the class refuses an argument.

    >>> import fusedstep
    >>> fusedstep.deserialize(fusedstep.serialize(fusedstep.SGD(0.1, momentum=0.9)))
    SGD(learning_rate=0.1, momentum=0.9)
    """
    cls, arguments = class_and_arguments(config, "deserialize", custom_objects)
    return cls.from_config(arguments)


def class_and_arguments(
    config: Mapping[str, Any],
    who: str,
    custom_objects: Mapping[str, type[Any]] | None = None,
    base: type[Any] = object,
) -> tuple[Any, dict[str, Any]]:
    """Return the class that a configuration names, and its arguments, with those made that are such too."""
    if not isinstance(config, Mapping):
        raise TypeError(
            f"{who}: a configuration must be a dict with 'class_name' and 'config',"
            f" got {config!r} of type {type(config).__name__}"
        )
    if "class_name" not in config:
        raise ValueError(f"{who}: a configuration needs a 'class_name', got the keys {sorted(config)}")
    cls = class_of(config["class_name"], who, custom_objects, base)
    values = config.get("config") or {}
    if not isinstance(values, Mapping):
        raise TypeError(f"{who}: the 'config' of {cls.__name__} must be a dict, got {values!r}")
    return cls, {name: _made(value, custom_objects) for name, value in values.items()}


def class_of(
    name: Any,
    who: str,
    custom_objects: Mapping[str, type[Any]] | None = None,
    base: type[Any] = object,
) -> Any:
    """Return the class of a name in any case."""
    custom = custom_objects or {}
    cls = custom.get(str(name)) or _registered.get(str(name).lower())
    if cls is None or not issubclass(cls, base):
        kind = "class" if base is object else base.__name__.lower()
        raise ValueError(
            f"{who}: no {kind} is named '{name}'; there are {', '.join([*custom, *registered(base)])}"
            " (fusedstep.register adds a class of your own)"
        )
    return cls


def _made(value: Any, custom_objects: Mapping[str, type[Any]] | None) -> Any:
    """Return a value of a configuration with what is serialized in it, at whatever depth, made again."""
    if isinstance(value, Mapping):
        if {"class_name", "config"} <= value.keys():
            return deserialize(value, custom_objects)
        return {key: _made(child, custom_objects) for key, child in value.items()}
    if isinstance(value, list):
        return [_made(child, custom_objects) for child in value]
    return value
