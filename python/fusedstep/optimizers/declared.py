"""From declared hyperparameters to arguments: constructor, signature, configuration, repr."""

import copy
import difflib
import inspect
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from fusedstep.optimizers.hyperparameters import Hyperparameter, hyperparameter
from fusedstep.optimizers.learning_rate import AskedLearningRate, LearningRate

if TYPE_CHECKING:
    from typing_extensions import Self, dataclass_transform
else:

    def dataclass_transform(**_: Any) -> Any:
        """Tell type checkers, and nobody else, that declarations make the arguments of __init__."""
        return lambda cls: cls


@dataclass_transform(kw_only_default=True, field_specifiers=(hyperparameter, LearningRate))
class Declared:
    """A class whose hyperparameters are declared in its body, and in its bases'."""

    learning_rate: LearningRate = LearningRate(default=0.001, kw_only=False)
    name: str = hyperparameter(default="", meaning="name; the class's in lower case if empty")

    _hyperparameters: ClassVar[dict[str, "Hyperparameter[Any] | LearningRate"]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Derive the signature from the declarations: the learning rate, the class's own, the base's."""
        super().__init_subclass__(**kwargs)
        for name, value in vars(cls).items():
            is_plain = isinstance(value, (bool, int, float, str, type(None)))
            if name == "learning_rate" and (is_plain or isinstance(value, Hyperparameter)):
                raise TypeError(
                    f"{cls.__name__}: learning_rate cannot be declared anew: it may be a schedule, which a"
                    " hyperparameter may not; give it a new default in"
                    " __init__(self, learning_rate=..., **others), which passes both on"
                )
            if name in cls._hyperparameters and is_plain:
                raise TypeError(
                    f"{cls.__name__}: {name} = {value!r} would hide the hyperparameter {name}; give it a new"
                    f" default with hyperparameter(default={value!r}, ...), or set it in __init__"
                )
        declared: dict[str, Hyperparameter[Any] | LearningRate] = {}
        for base in cls.__mro__:
            for name, value in vars(base).items():
                if isinstance(value, (Hyperparameter, LearningRate)):
                    declared.setdefault(name, value)
        cls._hyperparameters = {"learning_rate": declared["learning_rate"]} | declared
        if cls.__init__ is not Declared.__init__:  # that says what it takes
            own = inspect.signature(cls.__init__)
            cls.__signature__ = own.replace(  # type: ignore[attr-defined]
                parameters=list(own.parameters.values())[1:], return_annotation=inspect.Signature.empty
            )
            return
        cls.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [
                inspect.Parameter(
                    name,
                    inspect.Parameter.KEYWORD_ONLY
                    if isinstance(parameter, Hyperparameter)
                    else inspect.Parameter.POSITIONAL_OR_KEYWORD,
                    default=parameter.default,
                )
                for name, parameter in cls._hyperparameters.items()
            ]
        )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        cls, who = type(self), type(self).__name__
        if len(args) > 1:
            raise TypeError(
                f"{who}: only learning_rate can be given by position, got {len(args)} positional arguments;"
                " name the others"
            )
        names = ("learning_rate", "lr") if "lr" not in cls._hyperparameters else ("learning_rate",)
        by_old_name = "lr" in names and "lr" in kwargs
        rates = [*args, *(kwargs.pop(name) for name in names if name in kwargs)]
        if len(rates) > 1:
            alias = " (lr is learning_rate)" if by_old_name else ""
            raise TypeError(f"{who}: learning_rate is given twice, {' and '.join(map(repr, rates))}{alias}")
        if by_old_name:
            warnings.warn(f"{who}: lr is called learning_rate", DeprecationWarning, stacklevel=2)
        if rates:
            kwargs["learning_rate"] = rates[0]
        for name in kwargs:
            if name not in cls._hyperparameters:
                raise TypeError(cls._unknown(name))

        self._values: dict[str, Any] = {
            name: parameter.check(kwargs.get(name, parameter.default), who)
            for name, parameter in cls._hyperparameters.items()
        }
        self._values["name"] = self._values["name"] or who.lower()
        self._check_together()
        self._begin()

    if not TYPE_CHECKING:  # type checkers know better what can be set

        def __setattr__(self, name: str, value: Any) -> None:
            if not name.startswith("_") and not hasattr(type(self), name):
                raise AttributeError(self._unknown(name))
            super().__setattr__(name, value)

    @classmethod
    def _unknown(cls, name: str) -> str:
        close = difflib.get_close_matches(name, cls._hyperparameters, n=1)
        hint = f"did you mean {close[0]}?" if close else f"it takes {', '.join(cls._hyperparameters)}"
        return f"{cls.__name__}: there is no argument {name}; {hint}"

    @property
    def lr(self) -> float:
        """The learning rate, by the name that it had in old versions of Keras."""
        warnings.warn(f"{type(self).__name__}: lr is called learning_rate", DeprecationWarning, stacklevel=2)
        return self._learning_rate_at(self._calls())

    @lr.setter
    def lr(self, value: Any) -> None:
        warnings.warn(f"{type(self).__name__}: lr is called learning_rate", DeprecationWarning, stacklevel=3)
        self.learning_rate = value

    def _begin(self) -> None:
        """Set up what is no hyperparameter."""

    def _check_together(self) -> None:
        """Raise where hyperparameters contradict each other."""

    def _set_learning_rate(self, rate: float | AskedLearningRate) -> None:
        """Act upon a learning rate that is about to be set; what raises here leaves the former."""

    def _changed(self) -> None:
        """Act upon a hyperparameter that was set; what raises here undoes the change."""

    def _set(self, name: str, value: Any) -> None:
        before = self._values
        self._values = before | {name: value}
        try:
            self._check_together()
            self._changed()
        except BaseException:
            self._values = before
            self._changed()
            raise

    def _calls(self) -> int:
        """Return the number of calls so far."""
        return 0

    def _learning_rate_at(self, calls: int) -> float:
        """Return the learning rate for the step after so many calls."""
        rate: float | AskedLearningRate = self._values["learning_rate"]
        return rate if isinstance(rate, float) else rate.at(calls, type(self).__name__)

    def get_config(self) -> dict[str, Any]:
        """Return the hyperparameters; ``from_config`` makes an equal optimizer, without state, of them.

        A schedule is in its serialized form, a dict of plain data; a plain callable is as it is.
        """
        rate = self._values["learning_rate"]
        return self._values | {
            "learning_rate": rate.config() if isinstance(rate, AskedLearningRate) else rate
        }

    def _arguments(self) -> dict[str, Any]:
        """Return what ``from_config`` takes, with a schedule as it is."""
        given = self._as_given()
        if type(self).get_config is Declared.get_config:
            return given
        config = self.get_config()
        if config.get("learning_rate") != Declared.get_config(self)["learning_rate"]:
            return config
        return config | {"learning_rate": given["learning_rate"]}

    def _as_given(self) -> dict[str, Any]:
        rate = self._values["learning_rate"]
        return self._values | {
            "learning_rate": rate.argument() if isinstance(rate, AskedLearningRate) else rate
        }

    def clone(self) -> "Self":
        """Return an optimizer with the same hyperparameters, and without state.

        >>> from fusedstep import Adam
        >>> Adam(0.1, beta_1=0.5).clone()
        Adam(learning_rate=0.1, beta_1=0.5)
        """
        return self.from_config(copy.deepcopy(self._arguments()))

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "Self":
        """Make an optimizer of what ``get_config`` returned."""
        return cls(**config)

    def __repr__(self) -> str:
        shown = [
            f"{name}={value!r}"
            for name, value in self._as_given().items()
            if name == "learning_rate" or (name != "name" and value != self._hyperparameters[name].default)
        ]
        return f"{type(self).__name__}({', '.join(shown)})"
