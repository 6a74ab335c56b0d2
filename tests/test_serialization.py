"""Serialization: optimizers and schedules as plain data, through JSON and back."""

import copy
import functools
import inspect
import json
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import fusedstep
from conftest import VARIANTS
from fusedstep import SGD, Adam, LearningRateSchedule, Optimizer, serialization
from fusedstep.optimizers import ALL
from fusedstep.schedules import CosineDecay, ExponentialDecay, PiecewiseConstantDecay
from test_schedules import EXAMPLES, Linear


def through_json(thing: Any) -> Any:
    return fusedstep.deserialize(json.loads(json.dumps(fusedstep.serialize(thing))))


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """A registry whose changes end with the test."""
    monkeypatch.setattr(serialization, "_registered", dict(serialization._registered))


@pytest.mark.parametrize("optimizer", VARIANTS, ids=repr)
def test_every_optimizer_goes_through_json(optimizer: Optimizer) -> None:
    twin = through_json(optimizer)
    assert type(twin) is type(optimizer)
    assert twin.get_config() == optimizer.get_config()


@pytest.mark.parametrize("schedule", EXAMPLES, ids=repr)
def test_every_schedule_goes_through_json(schedule: LearningRateSchedule) -> None:
    assert through_json(schedule) == schedule


@pytest.mark.parametrize("cls", ALL, ids=lambda cls: cls.__name__)
@pytest.mark.parametrize("schedule", EXAMPLES, ids=repr)
def test_every_optimizer_with_every_schedule(cls: type[Optimizer], schedule: LearningRateSchedule) -> None:
    opt = cls(schedule)
    config = opt.get_config()
    assert config["learning_rate"] == {
        "class_name": type(schedule).__name__,
        "config": schedule.get_config(),
    }
    for twin in (through_json(opt), cls.from_config(config), fusedstep.get(fusedstep.serialize(opt))):
        assert twin.get_config() == config
        assert twin._arguments()["learning_rate"] == schedule
    twin = cls(0.5)
    twin.learning_rate = config["learning_rate"]
    assert twin.get_config() == config


def test_the_form() -> None:
    serialized = fusedstep.serialize(SGD(CosineDecay(0.1, 10), momentum=0.9))
    assert serialized.keys() == {"class_name", "config"}
    assert serialized["class_name"] == "SGD"
    assert serialized["config"]["momentum"] == 0.9
    assert serialized["config"]["learning_rate"]["class_name"] == "CosineDecay"
    assert serialized["config"]["learning_rate"]["config"]["decay_steps"] == 10


def test_kerass_own_form_is_read() -> None:
    """What keras.saving.serialize_keras_object returns for a schedule has more keys."""
    config = {
        "module": "keras.optimizers.schedules",
        "class_name": "ExponentialDecay",
        "config": {"initial_learning_rate": 0.1, "decay_steps": 4, "decay_rate": 0.5, "staircase": False}
        | {"name": "ExponentialDecay"},
        "registered_name": None,
    }
    assert fusedstep.deserialize(config) == ExponentialDecay(0.1, 4, 0.5)
    assert SGD(config).learning_rate == 0.1


def test_numpys_numbers_become_plain() -> None:
    class Drop(LearningRateSchedule):
        def __init__(self, at: Any, table: Any) -> None:
            self.at = at
            self.table = table

        def __call__(self, step: int) -> float:
            return 0.5

    config = fusedstep.serialize(Drop(np.int64(3), (np.float32(0.5), np.arange(2))))["config"]
    assert json.dumps(config) == '{"at": 3, "table": [0.5, [0, 1]]}'
    nested = fusedstep.serialize(Drop({"a": True}, CosineDecay(0.1, 10)))["config"]
    assert nested["at"] == {"a": True}
    assert fusedstep.deserialize(nested["table"]) == CosineDecay(0.1, 10)


class OneAfterAnother(LearningRateSchedule):
    """Schedules in a list, as in PyTorch's SequentialLR, and in a dict."""

    def __init__(self, schedules: Any, by_name: Any = None) -> None:
        self.schedules = schedules
        self.by_name = by_name

    def __call__(self, step: int) -> float:
        return float(self.schedules[min(step, len(self.schedules) - 1)](step))


def test_what_is_in_lists_and_dicts_is_made_again() -> None:
    parts = [CosineDecay(0.1, 10), ExponentialDecay(0.1, 4, 0.5)]
    schedule = OneAfterAnother([OneAfterAnother(parts), *parts], {"a": [parts[0], 3], "b": {"c": 1}})
    opt = SGD(schedule)
    config = json.loads(json.dumps(fusedstep.serialize(opt)))
    twin = fusedstep.deserialize(config, {"OneAfterAnother": OneAfterAnother})
    assert twin._arguments()["learning_rate"] == schedule
    assert [type(one) for one in twin._arguments()["learning_rate"].schedules] == [
        OneAfterAnother,
        CosineDecay,
        ExponentialDecay,
    ]
    assert twin.learning_rate == opt.learning_rate


# What cannot be written.


def rate(step: int) -> float:
    return 0.5


@pytest.mark.parametrize(
    "function", [rate, lambda: 0.5, functools.partial(pow, 2.0)], ids=["function", "lambda", "partial"]
)
def test_a_plain_callable_says_what_to_do(function: Callable[..., float]) -> None:
    sentence = (
        "serialize: Adam's learning_rate must be plain data or a schedule, got .*; for a learning rate use"
        r" one of fusedstep\.schedules or a subclass of LearningRateSchedule, or set a number before"
    )
    with pytest.raises(TypeError, match=sentence):
        fusedstep.serialize(Adam(function))
    with pytest.raises(
        TypeError, match="serialize: must be an optimizer or a schedule, with get_config, got"
    ):
        fusedstep.serialize(function)


# What cannot be read.


@pytest.mark.parametrize(
    ("config", "error", "sentence"),
    [
        (
            "SGD",
            TypeError,
            "a configuration must be a dict with 'class_name' and 'config', got 'SGD' of type",
        ),
        ({"config": {}}, ValueError, r"a configuration needs a 'class_name', got the keys \['config'\]"),
        ({"class_name": "Adamm"}, ValueError, "no class is named 'Adamm'; there are .*CosineDecay.*SGD"),
        ({"class_name": ["SGD"]}, ValueError, r"no class is named '\['SGD'\]'"),
        ({"class_name": "SGD", "config": 5}, TypeError, "the 'config' of SGD must be a dict, got 5"),
    ],
)
def test_what_is_no_configuration(config: Any, error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=f"^deserialize: {sentence}"):
        fusedstep.deserialize(config)


def test_get_makes_optimizers_only() -> None:
    with pytest.raises(ValueError, match="get: no optimizer is named 'CosineDecay'; there are SGD, Adam"):
        fusedstep.get("CosineDecay")
    assert fusedstep.deserialize({"class_name": "sgd"}).get_config() == SGD().get_config()


def test_an_optimizer_is_no_learning_rate() -> None:
    with pytest.raises(TypeError, match="SGD: learning_rate must be a real number"):
        SGD(fusedstep.serialize(SGD()))


# Classes of one's own.


class Slow(SGD):
    """SGD of one's own."""


@pytest.mark.usefixtures("registry")
def test_registered_classes_are_found_by_name() -> None:
    config = fusedstep.serialize(Slow(Linear(0.25)))
    with pytest.raises(ValueError, match=r"no class is named 'Slow'; .*fusedstep\.register adds"):
        fusedstep.deserialize(config)
    assert fusedstep.register(Slow) is Slow
    fusedstep.register(Linear)
    twin = fusedstep.deserialize(config)
    assert type(twin) is type(fusedstep.get("slow")) is Slow
    assert twin._arguments()["learning_rate"] == Linear(0.25)
    assert Slow.from_config(config["config"]).get_config() == config["config"]


def test_custom_objects_are_found_by_name() -> None:
    config = fusedstep.serialize(Slow(Linear(0.25)))
    twin = fusedstep.deserialize(config, custom_objects={"Slow": Slow, "Linear": Linear})
    assert type(twin) is Slow
    assert twin._arguments()["learning_rate"] == Linear(0.25)


@pytest.mark.usefixtures("registry")
def test_a_name_is_taken_once() -> None:
    class Adam(Slow):
        pass

    with pytest.raises(ValueError, match=r"register: the name 'Adam' is that of <class .*; rename one"):
        fusedstep.register(Adam)
    assert fusedstep.get("adam").__class__ is fusedstep.Adam
    assert type(fusedstep.deserialize({"class_name": "Adam"}, {"Adam": Adam})) is Adam

    def cell() -> type[Slow]:
        class Mine(Slow):
            pass

        return fusedstep.register(Mine)

    first, again = cell(), cell()
    assert first is not again
    assert type(fusedstep.get("mine")) is again, "a cell of a notebook may run again"


@pytest.mark.parametrize("thing", [5, rate, int, SGD()], ids=["number", "function", "class", "optimizer"])
def test_what_is_no_class_is_not_registered(thing: Any) -> None:
    with pytest.raises(TypeError, match="register: must be a class with from_config, got"):
        fusedstep.register(thing)


# Copies have the schedule itself, registered or not.


@pytest.mark.parametrize(
    "how",
    [copy.copy, copy.deepcopy, lambda opt: pickle.loads(pickle.dumps(opt)), Optimizer.clone],
    ids=["copy", "deepcopy", "pickle", "clone"],
)
def test_copies_carry_schedules(how: Callable[[Optimizer], Optimizer]) -> None:
    opt, w = SGD(Linear(0.25)), np.zeros(1)
    opt.apply([np.ones(1)], [w])
    twin = how(opt)
    assert twin._arguments()["learning_rate"] == Linear(0.25)


@pytest.mark.parametrize("optimizer", VARIANTS, ids=repr)
def test_clones_are_equal_and_without_state(optimizer: Optimizer) -> None:
    opt = type(optimizer)(**optimizer._arguments())
    opt.apply([np.ones(2)], [np.ones(2)])
    twin = opt.clone()
    assert type(twin) is type(opt)
    assert twin.get_config() == opt.get_config()
    assert (twin.iterations, twin.variables) == (0, [])
    twin.build([np.ones(3)])
    assert (twin.iterations, opt.iterations) == (0, 1)


def test_clones_of_callable_learning_rates() -> None:
    assert Adam(rate).clone().get_config()["learning_rate"] is rate


def test_every_schedule_is_tried() -> None:
    schedules = [cls for _, cls in inspect.getmembers(fusedstep.schedules, inspect.isclass)]
    public = {cls for cls in schedules if cls.__name__ in fusedstep.schedules.__all__}
    assert public - {LearningRateSchedule} == {type(schedule) for schedule in EXAMPLES}
    assert PiecewiseConstantDecay in public
