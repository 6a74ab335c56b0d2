"""fusedstep.keras: Keras' numbers, options and files, and programs as people write them."""

import inspect
import re
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
keras = pytest.importorskip("keras", reason="Keras is not installed")
if keras.backend.backend() != "torch":
    pytest.skip("Keras has another backend than torch", allow_module_level=True)

import fusedstep  # noqa: E402
import fusedstep.keras as adapted  # noqa: E402
from conftest import check_that_other_bases_hear_of_subclasses, classes_of_one_s_own  # noqa: E402

Array = npt.NDArray[Any]

# Keras' own: its variables lack NumPy 2's argument `copy`.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

NAMES = [name for name in adapted.__all__ if name != "Fused"]
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "SGD": [{"momentum": 0.9}, {"momentum": 0.9, "nesterov": True}],
    "Adam": [{"amsgrad": True, "beta_1": 0.8}],
    "RMSprop": [{"momentum": 0.5, "centered": True}],
    "Adagrad": [{"initial_accumulator_value": 0.5}],
    "Ftrl": [{"l1_regularization_strength": 0.01, "l2_shrinkage_regularization_strength": 0.01}],
}
OPTIONS: list[dict[str, Any]] = [
    {},
    {"weight_decay": 0.1},
    {"clipnorm": 0.5},
    {"global_clipnorm": 0.5},
    {"clipvalue": 0.3},
    {"use_ema": True, "ema_momentum": 0.7},
    {"use_ema": True, "ema_overwrite_frequency": 2, "weight_decay": 0.1},
    {"gradient_accumulation_steps": 2, "global_clipnorm": 0.5},
    {"loss_scale_factor": 4.0},
]
CASES = [(name, options) for name in NAMES for options in (*OPTIONS, *VARIANTS.get(name, []))]


def normal(shape: Any, seed: int) -> Array:
    return np.asarray(np.random.default_rng(seed).standard_normal(shape), np.float32)


def variables(dtype: str = "float32") -> list[Any]:
    return [
        keras.Variable(normal((3, 4), 1), dtype=dtype, name="kernel"),
        keras.Variable(normal((4,), 2), dtype=dtype, name="bias"),
    ]


def gradients(targets: list[Any], step: int) -> list[Any]:
    dtypes = [v.value.dtype for v in targets]
    return [torch.from_numpy(normal(v.shape, 9 * step + i)).to(dtypes[i]) for i, v in enumerate(targets)]


def walk(optimizer: Any, targets: list[Any], steps: range) -> None:
    for step in steps:
        optimizer.apply(gradients(targets, step), targets)


def model(units: tuple[int, ...] = (8, 1), dtype: Any = None) -> Any:
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Dense(n, activation="tanh", dtype=dtype) for n in units[:-1]]
    return keras.Sequential([keras.layers.Input((3,)), *layers, keras.layers.Dense(units[-1], dtype=dtype)])


def data() -> tuple[Array, Array]:
    x = normal((64, 3), 0)
    return x, (x @ np.array([[1.0], [-2.0], [0.5]], np.float32))


def losses(trained: Any, epochs: int = 8) -> list[float]:
    history = trained.fit(*data(), epochs=epochs, batch_size=16, shuffle=False, verbose=0)
    return [float(loss) for loss in history.history["loss"]]


# Numbers.


@pytest.mark.parametrize(("name", "options"), CASES, ids=lambda value: str(value))
def test_as_keras_step_by_step(name: str, options: dict[str, Any]) -> None:
    arguments = {"learning_rate": 0.01, **options}
    ours, theirs = variables(), variables()
    optimizer, peer = getattr(adapted, name)(**arguments), getattr(keras.optimizers, name)(**arguments)
    for step in range(6):
        walk(optimizer, ours, range(step, step + 1))
        walk(peer, theirs, range(step, step + 1))
        for v, w in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(v.numpy(), w.numpy(), rtol=2e-5, atol=2e-6)
    assert [tuple(v.shape) for v in optimizer.variables] == [tuple(v.shape) for v in peer.variables]
    for v, w in zip(optimizer.variables, peer.variables, strict=True):
        np.testing.assert_allclose(v.numpy(), w.numpy(), rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_bits_of_the_class_on_numpy_arrays(name: str) -> None:
    ours = variables()
    arrays = [v.numpy().copy() for v in ours]
    optimizer = getattr(adapted, name)(learning_rate=0.01)
    cls = optimizer._core_class
    twin = cls(float(np.float32(0.01)), **optimizer._core_arguments, **optimizer._core_values())
    for step in range(4):
        given = gradients(ours, step)
        optimizer.apply(given, ours)
        twin.apply([gradient.numpy() for gradient in given], arrays)
        assert [v.numpy().tobytes() for v in ours] == [array.tobytes() for array in arrays]


def test_excluded_from_weight_decay_and_missing_gradients() -> None:
    both = []
    for library in (adapted, keras.optimizers):
        targets = variables()
        optimizer = library.AdamW(learning_rate=0.1, weight_decay=0.5)
        optimizer.exclude_from_weight_decay(var_names=["bias"])
        for step in range(4):
            given = gradients(targets, step)
            if step == 2:
                with pytest.warns(UserWarning, match="Gradients do not exist"):
                    optimizer.apply([given[0], None], targets)
            else:
                optimizer.apply(given, targets)
        both.append([v.numpy() for v in targets])
    for v, w in zip(*both, strict=True):
        np.testing.assert_allclose(v, w, rtol=2e-5, atol=2e-6)


def test_excluded_from_weight_decay_after_the_build() -> None:
    """In all models of an optimizer; what is said last holds."""
    both = []
    for library in (adapted, keras.optimizers):
        several = [variables(), variables()]
        shared = library.AdamW(0.01, weight_decay=5.0)
        optimizers = [shared, shared if library is adapted else library.AdamW(0.01, weight_decay=5.0)]
        for step in range(6):
            for optimizer, targets in zip(optimizers, several, strict=True):
                optimizer.apply(gradients(targets, step), targets)
            for optimizer in {id(one): one for one in optimizers}.values():
                if step == 1:
                    optimizer.exclude_from_weight_decay(var_names=["bias"])
                if step == 3:
                    optimizer.exclude_from_weight_decay(iter([targets[0] for targets in several]))
        both.append([v.numpy() for targets in several for v in targets])
    for v, w in zip(*both, strict=True):
        np.testing.assert_allclose(v, w, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("way", ["names", "list"])
def test_what_is_excluded_from_weight_decay_before_the_build_is_in_all_models(way: str) -> None:
    several = [variables() for _ in range(3)]
    shared = adapted.SGD(0.1, weight_decay=0.5)
    given = {"var_names": ["bias"]} if way == "names" else {"var_list": [targets[1] for targets in several]}
    shared.exclude_from_weight_decay(**given)
    for targets in several:
        shared.apply([torch.zeros(v.shape) for v in targets], targets)
        np.testing.assert_allclose(targets[0].numpy(), normal((3, 4), 1) * 0.95, rtol=1e-6)
        np.testing.assert_array_equal(targets[1].numpy(), normal((4,), 2))


def test_a_variable_is_excluded_from_weight_decay_without_those_whose_paths_begin_with_its_own() -> None:
    class Scaled(keras.layers.Layer):  # type: ignore[misc, name-defined]
        def build(self, shape: Any) -> None:
            self.scale = self.add_weight(shape=(3,), initializer="ones", name="inner")
            self.inner = keras.layers.Dense(3, name="inner")
            self.inner.build(shape)

        def call(self, x: Any) -> Any:
            return self.inner(x) * self.scale

    both = []
    for library in (adapted, keras.optimizers):
        keras.utils.set_random_seed(0)
        targets = keras.Sequential([keras.layers.Input((3,)), Scaled()]).trainable_variables
        assert targets[1].path == f"{targets[0].path}/kernel"
        optimizer = library.SGD(0.1, weight_decay=0.5)
        optimizer.exclude_from_weight_decay(var_list=[targets[0]])
        walk(optimizer, targets, range(3))
        both.append([v.numpy() for v in targets])
    for v, w in zip(*both, strict=True):
        np.testing.assert_allclose(v, w, rtol=2e-5, atol=2e-6)


def test_hyperparameters_and_rates_can_change_between_steps() -> None:
    both = []
    for library in (adapted, keras.optimizers):
        targets = variables()
        optimizer = library.Adam(0.1)
        walk(optimizer, targets, range(2))
        optimizer.beta_1 = 0.5
        optimizer.learning_rate = 0.05
        walk(optimizer, targets, range(2, 4))
        both.append([v.numpy() for v in targets])
    for v, w in zip(*both, strict=True):
        np.testing.assert_allclose(v, w, rtol=2e-5, atol=2e-6)


def test_options_can_take_the_place_of_others_between_steps() -> None:
    both = []
    for library in (adapted, keras.optimizers):
        targets = variables()
        optimizer = library.SGD(0.1, clipvalue=0.3)
        walk(optimizer, targets, range(2))
        optimizer.clipvalue, optimizer.clipnorm = None, 0.1
        walk(optimizer, targets, range(2, 4))
        optimizer.clipnorm, optimizer.global_clipnorm = 0, 0.2
        walk(optimizer, targets, range(4, 6))
        optimizer.global_clipnorm, optimizer.clipvalue = None, 0.05
        walk(optimizer, targets, range(6, 8))
        both.append([v.numpy() for v in targets])
    for v, w in zip(*both, strict=True):
        np.testing.assert_allclose(v, w, rtol=2e-5, atol=2e-6)


def test_changes_that_are_taken_back_after_a_refusal_leave_nothing() -> None:
    targets, twins = variables(), variables()
    optimizer, twin = adapted.Adam(0.1), adapted.Adam(0.1)
    walk(optimizer, targets, range(1))
    optimizer.beta_1, optimizer.amsgrad = 0.5, True
    with pytest.raises(ValueError, match="the change needs other slots than were built"):
        walk(optimizer, targets, range(1, 2))
    optimizer.beta_1, optimizer.amsgrad = 0.9, False
    walk(optimizer, targets, range(1, 3))
    walk(twin, twins, range(3))
    assert [v.numpy().tobytes() for v in targets] == [v.numpy().tobytes() for v in twins]


def test_options_that_are_set_before_the_build_count() -> None:
    both = []
    for library in (adapted, keras.optimizers):
        targets = variables()
        optimizer = library.SGD(0.1)
        optimizer.momentum, optimizer.use_ema = 0.9, True
        walk(optimizer, targets, range(3))
        both.append([v.numpy() for v in (*targets, *optimizer.variables)])
    for v, w in zip(*both, strict=True):
        np.testing.assert_allclose(v, w, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize(
    "options",
    [
        {"ema_overwrite_frequency": 2},
        {"ema_overwrite_frequency": 0, "use_ema": True},
        {"gradient_accumulation_steps": 0},
        *({name: 0.0} for name in ("clipnorm", "global_clipnorm", "clipvalue")),
    ],
    ids=str,
)
def test_options_that_are_off_in_keras_are_off(options: dict[str, Any]) -> None:
    both = []
    for library in (adapted, keras.optimizers):
        targets = variables()
        optimizer = library.Adam(0.1, **options)
        optimizer = type(optimizer).from_config(optimizer.get_config())
        walk(optimizer, targets, range(5))
        both.append([v.numpy() for v in (*targets, *optimizer.variables)])
    for v, w in zip(*both, strict=True):
        np.testing.assert_allclose(v, w, rtol=2e-5, atol=2e-6)


def test_keras_count_is_read_only_where_others_have_changed_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU that would wait for all steps before."""
    reads: list[Any] = []
    to_int = torch.Tensor.__int__

    def read(tensor: Any) -> int:
        reads.append(tensor)
        return int(to_int(tensor))

    monkeypatch.setattr(torch.Tensor, "__int__", read)
    targets = variables()
    optimizer, count = adapted.Adam(0.01), []

    def step(times: int) -> None:
        for number in range(times):
            optimizer.apply(gradients(targets, number), targets)
        count.append((len(reads), optimizer._core._plans[0].calls))

    step(3)
    optimizer.iterations.assign(10)
    step(2)
    assert count == [(1, 3), (2, 12)]
    assert int(optimizer.iterations) == 12
    optimizer.iterations.assign(4)
    with pytest.raises(ValueError, match="shape"):
        optimizer.apply([keras.ops.ones((5,)), keras.ops.ones((4,))], targets)
    step(1)
    assert optimizer._core._plans[0].calls == 5
    with pytest.raises(ValueError, match="shape"):
        optimizer.apply([keras.ops.ones((5,)), keras.ops.ones((4,))], targets)
    optimizer.iterations.assign(7)
    step(1)
    assert optimizer._core._plans[0].calls == 8


@pytest.mark.parametrize("number", [3, np.int64(3), torch.tensor(3)], ids=repr)
def test_numbers_of_any_kind_are_added_to_keras_count(number: Any) -> None:
    targets, optimizer = variables(), adapted.Adam(0.01)
    walk(optimizer, targets, range(2))
    assert int(optimizer.iterations.assign_add(number)) == 5
    walk(optimizer, targets, range(2, 3))
    assert int(optimizer.iterations) == optimizer._core._plans[0].calls == 6


def test_a_schedule() -> None:
    both = []
    for library in (adapted, keras.optimizers):
        targets = variables()
        walk(library.SGD(keras.optimizers.schedules.ExponentialDecay(0.1, 2, 0.5)), targets, range(4))
        both.append([v.numpy() for v in targets])
    for v, w in zip(*both, strict=True):
        np.testing.assert_allclose(v, w, rtol=2e-5, atol=2e-6)


# Precision.


def test_a_bfloat16_policy_trains() -> None:
    """Slots are float32, where Keras' are bfloat16: its second moments stop moving."""
    targets = [keras.Variable(np.ones(8), dtype="bfloat16", name="w")]
    optimizer = adapted.Adam(1e-3)
    for _ in range(400):
        optimizer.apply([torch.full((8,), 0.5, dtype=torch.bfloat16)], targets)
    velocity = optimizer._velocities[0]
    assert velocity.dtype == "float32"
    np.testing.assert_allclose(velocity.numpy(), 0.25 * (1 - 0.999**400), rtol=1e-4)
    trained = model(dtype="bfloat16")
    trained.compile(optimizer=adapted.Adam(0.05), loss="mse")
    values = losses(trained)
    assert values[-1] < 0.3 * values[0]


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision_and_dynamic_loss_scaling(policy: str) -> None:
    """With mixed_float16, compile wraps the optimizer into Keras' LossScaleOptimizer."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    both = []
    try:
        for library in (adapted, keras.optimizers):
            trained = model()
            trained.compile(optimizer=library.Adam(0.05), loss="mse")
            scaled = isinstance(trained.optimizer, keras.optimizers.LossScaleOptimizer)
            assert scaled == (policy == "mixed_float16")
            both.append(losses(trained))
    finally:
        keras.config.set_dtype_policy(before)
    np.testing.assert_allclose(both[0], both[1], rtol=0.02)


def test_a_step_with_an_infinite_gradient_is_left_out() -> None:
    targets = variables()
    optimizer = keras.optimizers.LossScaleOptimizer(adapted.Adam(0.1), initial_scale=8.0)
    walk(optimizer, targets, range(1))
    before = [v.numpy() for v in targets]
    given = gradients(targets, 1)
    given[0][0, 0] = float("inf")
    optimizer.apply(given, targets)
    assert all((v.numpy() == b).all() for v, b in zip(targets, before, strict=True))
    assert float(optimizer.dynamic_scale) == 4.0
    assert int(optimizer.iterations) == 1


# Memory.


def test_a_recurrent_model_trains() -> None:
    """Its orthogonal kernel is a matrix that was transposed."""
    both = []
    for library in (adapted, keras.optimizers):
        keras.utils.set_random_seed(0)
        layers = [keras.layers.SimpleRNN(4), keras.layers.Dense(1, kernel_initializer="orthogonal")]
        trained = keras.Sequential([keras.layers.Input((5, 3)), *layers])
        assert not trained.layers[0].cell.recurrent_kernel.value.is_contiguous()
        trained.compile(optimizer=library.Adam(0.05), loss="mse")
        x, y = normal((32, 5, 3), 0), normal((32, 1), 1)
        both.append(trained.fit(x, y, epochs=4, shuffle=False, verbose=0).history["loss"])
    np.testing.assert_allclose(both[0], both[1], rtol=1e-4)


def laid_out(layout: str) -> Any:
    """A variable of shape (4, 3, 2, 2), and what it is a part of."""
    whole = torch.from_numpy(normal((4, 3, 2, 2), 0))
    if layout == "channels_last":
        whole = whole.to(memory_format=torch.channels_last)
    elif layout == "transposed":
        whole = whole.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0)
    else:
        whole = torch.stack([whole, whole], 2)[:, :, 1]
    return keras.Variable(torch.nn.Parameter(whole), name="kernel")


@pytest.mark.parametrize("options", [{"use_ema": True, "ema_overwrite_frequency": 2}, {"amsgrad": True}])
@pytest.mark.parametrize("layout", ["channels_last", "transposed", "gaps"])
def test_variables_stay_in_their_memory_whatever_its_layout(layout: str, options: dict[str, Any]) -> None:
    found = []
    for lies in (True, False):
        targets = [laid_out(layout), *variables()]
        if not lies:
            targets[0].value.data = targets[0].value.data.contiguous()
        tensor, place = targets[0].value, (targets[0].value.data_ptr(), targets[0].value.stride())
        assert tensor.is_contiguous() != lies
        optimizer = adapted.Adam(0.01, **options)
        walk(optimizer, targets, range(3))
        with pytest.warns(UserWarning, match="Gradients do not exist"):
            optimizer.apply([None, *gradients(targets, 3)[1:]], targets)
        given = gradients(targets, 4)
        given[0] = given[0].to(memory_format=torch.channels_last)
        version = tensor._version
        optimizer.apply(given, targets)
        assert (tensor.data_ptr(), tensor.stride()) == place
        assert tensor._version > version
        found.append([np.ascontiguousarray(v.numpy()) for v in (*targets, *optimizer.variables)])
    assert [a.tobytes() for a in found[0]] == [b.tobytes() for b in found[1]]


@pytest.mark.parametrize("layout", ["channels_last", "transposed", "gaps"])
def test_values_that_are_assigned_between_steps_whatever_the_layout(layout: str) -> None:
    """Also where steps go through a copy of the variable."""
    both = []
    for target in (laid_out(layout), keras.Variable(laid_out(layout).numpy(), name="kernel")):
        optimizer = adapted.Adam(0.01, use_ema=True)
        walk(optimizer, [target], range(2))
        target.assign(normal((4, 3, 2, 2), 5))
        walk(optimizer, [target], range(2, 4))
        both.append([np.ascontiguousarray(v.numpy()) for v in (target, *optimizer.variables)])
    assert [a.tobytes() for a in both[0]] == [b.tobytes() for b in both[1]]


@pytest.mark.parametrize("layout", ["channels_last", "gaps"])
def test_a_gradient_of_numpy_in_whatever_layout_the_variable_lies(layout: str) -> None:
    """It is taken as those of variables that lie as they are read."""
    targets, twins = [laid_out(layout)], [laid_out(layout)]
    given = gradients(targets, 0)
    adapted.SGD(0.1).apply([given[0].numpy()], targets)
    adapted.SGD(0.1).apply(given, twins)
    assert targets[0].numpy().tobytes() == twins[0].numpy().tobytes()


def test_a_variable_without_elements() -> None:
    """Its strides are all 0 where NumPy made it, as if its elements shared memory."""
    targets = [keras.Variable(np.ones((2, 0), np.float32), name="empty"), *variables()]
    twins = variables()
    optimizer, twin = adapted.Adam(0.01), adapted.Adam(0.01)
    for step in range(2):
        given = gradients(twins, step)
        optimizer.apply([torch.zeros(2, 0), *given], targets)
        twin.apply(given, twins)
    assert [v.numpy().tobytes() for v in targets[1:]] == [v.numpy().tobytes() for v in twins]


def test_a_variable_whose_elements_share_memory_is_refused_by_its_path() -> None:
    targets = variables()
    targets[1]._value = torch.nn.Parameter(torch.ones(()).expand(4))
    with pytest.raises(ValueError, match=r"Adam\.build: the variable 'bias' has elements that share memory"):
        adapted.Adam().build(targets)


def test_tied_weights_of_another_layout_are_refused() -> None:
    """To make one contiguous would part them."""
    kernel = torch.nn.Parameter(torch.ones(3, 4))
    tied = [keras.Variable(kernel), keras.Variable(torch.nn.Parameter(kernel.data.t()))]
    with pytest.raises(ValueError, match="share memory"):
        adapted.Adam().build(tied)


def to_clone(v: Any) -> None:
    v.value.data = v.value.data.clone()


def to_other_layout(v: Any) -> None:
    v.value.data = v.value.data.t().contiguous().t()


def to_double_and_back(v: Any) -> None:
    v.value.data = v.value.data.double().float()


def to_other_tensor(v: Any) -> None:
    v._value = torch.nn.Parameter(v.value.data.clone())


def to_other_tensor_there(v: Any) -> None:
    v._value = torch.nn.Parameter(v.value.data)


MOVES = [to_clone, to_other_layout, to_double_and_back, to_other_tensor, to_other_tensor_there]


@pytest.mark.parametrize("name", [*NAMES])
@pytest.mark.parametrize("move", MOVES)
def test_variables_whose_memory_is_replaced_are_trained_on(name: str, move: Any) -> None:
    """As share_memory(), vector_to_parameters and others do: slots, counts and settings stay."""
    options = dict(VARIANTS.get(name, [{}])[-1], use_ema=True, weight_decay=0.1)
    found = []
    for moves in (False, True):
        targets = variables()
        optimizer = getattr(adapted, name)(learning_rate=0.01, **options)
        optimizer.exclude_from_weight_decay(var_names=["bias"])
        state: list[Any] = []
        for step in range(5):
            walk(optimizer, targets, range(step, step + 1))
            state = state or optimizer.variables
            if moves and step in (1, 3):
                move(targets[0])
            if moves and step == 2:
                move(targets[1]) if move is not to_other_layout else to_clone(targets[1])
        assert [id(v) for v in optimizer.variables] == [id(v) for v in state]
        found.append([v.numpy().tobytes() for v in (*targets, *optimizer.variables)])
    assert found[0] == found[1]


def share_slot(v: Any) -> None:
    v.value.share_memory_()


def clear_data_of_slot(v: Any) -> None:
    v._value.data = v._value.data * 0


def clear_slot(v: Any) -> None:
    v._value = torch.nn.Parameter(v.value.data * 0, requires_grad=False)


@pytest.mark.parametrize("move", [share_slot, clear_data_of_slot, clear_slot])
@pytest.mark.parametrize("moves", [None, to_clone], ids=["stay", "move"])
@pytest.mark.parametrize("options", [{"use_ema": True}, {"amsgrad": True}], ids=str)
def test_slots_whose_memory_is_replaced_are_taken_over(options: Any, moves: Any, move: Any) -> None:
    """As if that had been put into the slots, also where a variable has moved at the same time."""
    found = []
    for replaced in (False, True):
        targets = variables()
        optimizer = adapted.Adam(0.01, **options)
        for step in range(6):
            walk(optimizer, targets, range(step, step + 1))
            if step in (1, 3):
                for v in optimizer.variables[2:]:
                    if replaced:
                        move(v)
                    elif move is not share_slot:
                        v.assign(v.value * 0)
                if moves:
                    moves(targets[1])
        found.append([v.numpy().tobytes() for v in (*targets, *optimizer.variables)])
    assert found[0] == found[1]


def test_memory_of_a_later_slot_that_is_replaced() -> None:
    """It cannot be told at once; what is saved and the steps after it agree."""
    targets = variables()
    optimizer = adapted.Adam(0.01)
    walk(optimizer, targets, range(1))
    slot = next(v for v in optimizer.variables if v.path.endswith("bias_momentum"))
    clear_data_of_slot(slot)
    store: dict[str, Any] = {}
    optimizer.save_own_variables(store)
    assert not store[str([id(v) for v in optimizer.variables].index(id(slot)))].any()
    walk(optimizer, targets, range(1, 2))
    expected = 0.1 * gradients(targets, 1)[1].numpy()
    np.testing.assert_allclose(slot.numpy(), expected, rtol=1e-5)


def test_a_slot_of_another_shape_is_refused() -> None:
    targets = variables()
    optimizer = adapted.Adam(0.01)
    walk(optimizer, targets, range(1))
    state = [v.numpy() for v in targets]
    slot = optimizer.variables[2]
    kept, slot._value = slot._value, torch.nn.Parameter(torch.zeros(4), requires_grad=False)
    with pytest.raises(ValueError, match=rf"Adam\.apply: the slot '{slot.path}' has shape \(4,\), but had"):
        walk(optimizer, targets, range(1, 2))
    assert all((v.numpy() == before).all() for v, before in zip(targets, state, strict=True))
    slot._value = kept
    walk(optimizer, targets, range(1, 2))
    assert int(optimizer.iterations) == 2


def test_a_count_whose_memory_is_replaced() -> None:
    targets, twins = variables(), variables()
    optimizer, twin = adapted.Adam(0.01), adapted.Adam(0.01)
    for each, own in ((optimizer, targets), (twin, twins)):
        walk(each, own, range(3))
    optimizer.iterations._value.data = torch.zeros((), dtype=optimizer.iterations.value.dtype)
    twin.iterations.assign(0)
    for each, own in ((optimizer, targets), (twin, twins)):
        walk(each, own, range(3, 5))
    assert [v.numpy().tobytes() for v in targets] == [v.numpy().tobytes() for v in twins]
    assert int(optimizer.iterations) == 2


def test_a_variable_with_its_axes_exchanged_in_place_is_noticed() -> None:
    targets, twins = (
        [keras.Variable(torch.nn.Parameter(torch.from_numpy(normal((4, 4), 0)).t()))] for _ in range(2)
    )
    optimizer, twin = adapted.Adam(0.01), adapted.Adam(0.01)
    for step in range(4):
        if step == 2:
            targets[0].value.data = targets[0].value.data.t()
            twins[0].value.data = twins[0].value.data.t().clone()
        walk(optimizer, targets, range(step, step + 1))
        walk(twin, twins, range(step, step + 1))
    for v, w in zip((*targets, *optimizer.variables), (*twins, *twin.variables), strict=True):
        np.testing.assert_array_equal(v.numpy(), w.numpy())


def test_variables_of_another_dtype_are_trained_on() -> None:
    targets, twins = variables(), variables()
    optimizer, twin = adapted.Adam(0.01), adapted.Adam(0.01)
    walk(optimizer, targets, range(2))
    walk(twin, twins, range(2))
    targets[0].value.data = targets[0].value.data.double()
    for step in (2, 3):
        given = gradients(twins, step)
        twin.apply(given, twins)
        optimizer.apply([given[0].double(), given[1]], targets)
    assert optimizer._momentums[0].dtype == "float64"
    np.testing.assert_allclose(targets[0].numpy(), twins[0].numpy(), rtol=1e-5, atol=1e-6)
    assert targets[1].numpy().tobytes() == twins[1].numpy().tobytes()


def test_a_variable_that_cannot_be_trained_for_a_while_goes_on_after_it() -> None:
    targets, twins = variables(), variables()
    optimizer, twin = adapted.Adam(0.01), adapted.Adam(0.01)
    for step in range(4):
        if step == 2:
            whole = targets[0].value.data
            targets[0].value.data = whole.to(torch.float8_e4m3fn)
            with pytest.raises(TypeError, match="float8_e4m3fn on cpu, but a variable must be"):
                walk(optimizer, targets, range(step, step + 1))
            targets[0].value.data = whole.clone()
        walk(optimizer, targets, range(step, step + 1))
        walk(twin, twins, range(step, step + 1))
    assert [v.numpy().tobytes() for v in targets] == [v.numpy().tobytes() for v in twins]


def test_averages_that_were_turned_off_do_not_keep_variables_from_moving() -> None:
    targets, twins = variables(), variables()
    optimizer, twin = adapted.Adam(0.01, use_ema=True), adapted.Adam(0.01)
    for step in range(4):
        if step == 2:
            optimizer.use_ema = False
            to_clone(targets[0])
        walk(optimizer, targets, range(step, step + 1))
        walk(twin, twins, range(step, step + 1))
    assert [v.numpy().tobytes() for v in targets] == [v.numpy().tobytes() for v in twins]


def test_a_variable_of_another_shape_is_refused() -> None:
    targets = variables()
    optimizer = adapted.Adam(0.01)
    walk(optimizer, targets, range(1))
    targets[0].value.data = torch.ones(2, 4)
    with pytest.raises(ValueError, match=r"the variable 'kernel' has shape \(2, 4\), but had \(3, 4\)"):
        optimizer.apply([torch.ones(2, 4), torch.ones(4)], targets)
    assert int(optimizer.iterations) == 1


# Files.


@pytest.mark.parametrize("name", ["Adam", "Nadam", "SGD"])
def test_a_model_that_is_saved_and_loaded_goes_on_to_the_same_bits(name: str, tmp_path: Path) -> None:
    arguments = {"momentum": 0.9} if name == "SGD" else {"use_ema": True}
    trained = model()
    trained.compile(optimizer=getattr(adapted, name)(0.05, weight_decay=0.01, **arguments), loss="mse")
    losses(trained, 2)
    path = tmp_path / "model.keras"
    trained.save(path)
    again = keras.saving.load_model(path)
    assert type(again.optimizer) is getattr(adapted, name)
    assert again.optimizer.get_config() == trained.optimizer.get_config()
    assert losses(again, 3) == losses(trained, 3)
    for v, w in zip(trained.weights, again.weights, strict=True):
        assert v.numpy().tobytes() == w.numpy().tobytes()


def test_a_model_is_saved_before_its_first_step(tmp_path: Path) -> None:
    trained = model()
    trained.compile(optimizer=adapted.Adam(0.05), loss="mse")
    assert not trained.optimizer.built
    trained.save(tmp_path / "model.keras")
    store: dict[str, Any] = {}
    trained.optimizer.save_own_variables(store)
    assert len(store) == 2
    with pytest.warns(UserWarning, match="has 10 variables whereas the saved optimizer has 2"):
        again = keras.saving.load_model(tmp_path / "model.keras")
    assert losses(again, 1) == losses(trained, 1)


def test_state_of_keras_own_class_can_be_taken_over(tmp_path: Path) -> None:
    trained = [model(), model()]
    for one, library in zip(trained, (keras.optimizers, adapted), strict=True):
        one.compile(optimizer=library.Adam(0.05), loss="mse")
        losses(one, 1)
    trained[0].save_weights(tmp_path / "theirs.weights.h5")
    losses(trained[1], 1)  # away from there
    trained[1].load_weights(tmp_path / "theirs.weights.h5")
    for v, w in zip(trained[0].optimizer.variables, trained[1].optimizer.variables, strict=True):
        np.testing.assert_array_equal(v.numpy(), w.numpy())
    np.testing.assert_allclose(losses(trained[0], 2), losses(trained[1], 2), rtol=1e-4)


# Programs as people write them.


def test_a_sequential_model_of_dense_layers() -> None:
    for optimizer in (adapted.SGD(0.1), adapted.Adam(0.05), "fusedstep>Adam"):
        trained = model()
        trained.compile(optimizer=optimizer, loss="mse", metrics=["mae"])
        assert isinstance(trained.optimizer, adapted.Fused)
        values = losses(trained)
        assert values[-1] < values[0]
        assert trained.evaluate(*data(), verbose=0)[0] < values[0]
        assert trained.predict(data()[0], verbose=0).shape == (64, 1)


def test_fit_as_with_keras_own() -> None:
    both = []
    for library in (adapted, keras.optimizers):
        trained = model()
        trained.compile(optimizer=library.RMSprop(0.01), loss="mse")
        both.append(losses(trained))
    np.testing.assert_allclose(both[0], both[1], rtol=1e-4)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # Dynamo's, on 3.10
@pytest.mark.filterwarnings("ignore:Guards may run slower:RuntimeWarning")  # Dynamo's, on 3.13.0
def test_fit_of_a_compiled_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """jit_compile=True compiles what is around the step (by no compiler here: that takes half a minute)."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    found = []
    for jit_compile in (False, True):
        trained = model()
        trained.compile(optimizer=adapted.Adam(0.01), loss="mse", jit_compile=jit_compile)
        found.append((losses(trained, 3), [v.numpy().tobytes() for v in trained.trainable_variables]))
    assert found[0] == found[1]


def test_switching_from_sgd_to_adam() -> None:
    trained = model()
    trained.compile(optimizer=adapted.SGD(0.01), loss="mse")
    first = losses(trained, 2)
    trained.compile(optimizer=adapted.Adam(0.05), loss="mse")
    assert losses(trained, 6)[-1] < first[-1]


def test_one_instance_for_two_models() -> None:
    """Each model has counts and slots of its own, which Keras' optimizers refuse."""
    optimizer = adapted.Adam(0.05)
    shared = [model((8, 1)), model((4, 4, 1))]
    for one in shared:
        one.compile(optimizer=optimizer, loss="mse")
    together = [losses(one, 3) for one in shared]
    alone = []
    for units in ((8, 1), (4, 4, 1)):
        one = model(units)
        one.compile(optimizer=adapted.Adam(0.05), loss="mse")
        alone.append(losses(one, 3))
    assert together == alone


def test_one_instance_for_three_models_in_turn() -> None:
    optimizer, twin = adapted.Adam(0.05), adapted.Adam(0.05)
    several, twins = [variables() for _ in range(3)], variables()
    for step in range(3):
        for targets in several:
            walk(optimizer, targets, range(step, step + 1))
        walk(twin, twins, range(step, step + 1))
    for targets in several:
        assert [v.numpy().tobytes() for v in targets] == [v.numpy().tobytes() for v in twins]


def test_settings_and_rates_reach_all_models() -> None:
    """Also those that are set when there are several."""

    def trained(optimizers: list[Any]) -> list[bytes]:
        several = [variables() for _ in optimizers]
        for step in range(6):
            for optimizer, targets in zip(optimizers, several, strict=True):
                optimizer.apply(gradients(targets, step), targets)
            for optimizer in {id(one): one for one in optimizers}.values():
                if step == 1:
                    optimizer.weight_decay, optimizer.clipnorm, optimizer.beta_1 = 0.5, 0.1, 0.3
                if step == 2:
                    optimizer.learning_rate = 0.05
                if step == 3:
                    optimizer.learning_rate = lambda: 0.2
                if step == 4:
                    optimizer.learning_rate = keras.optimizers.schedules.ExponentialDecay(0.1, 2, 0.5)
                    optimizer.loss_scale_factor, optimizer.clipnorm = 4.0, None
        return [v.numpy().tobytes() for targets in several for v in targets]

    shared = adapted.Adam(0.01)
    assert trained([shared, shared]) == trained([adapted.Adam(0.01), adapted.Adam(0.01)])


def test_a_rate_that_has_no_configuration_serves_several_models() -> None:
    class Rate:
        def __call__(self) -> float:
            return 0.1

    for rate in (lambda: 0.1, Rate(), partial(float, 0.1)):
        optimizer, several = adapted.Adam(rate), [variables(), variables()]
        for targets in several:
            walk(optimizer, targets, range(2))
        assert [v.numpy().tobytes() for v in several[0]] == [v.numpy().tobytes() for v in several[1]]
        assert optimizer._learning_rate is rate


def test_a_second_model_leaves_the_rate_of_the_first_alone() -> None:
    """Another thread may take a step with it meanwhile, and a subclass may tell it in its configuration."""
    seen: list[float] = []

    class Telling(adapted.SGD):
        def get_config(self) -> dict[str, Any]:
            seen.extend([float(optimizer.learning_rate), float(self.learning_rate)])
            return dict(super().get_config())

    optimizer, several = Telling(0.5), [variables(), variables()]
    for targets in several:
        walk(optimizer, targets, range(2))
    assert seen[0] == 0.5
    assert [v.numpy().tobytes() for v in several[0]] == [v.numpy().tobytes() for v in several[1]]


def test_a_train_step_of_ones_own_with_clipping() -> None:
    def loss_of(trained: Any) -> Any:
        x, y = data()
        return keras.losses.mean_squared_error(
            keras.ops.convert_to_tensor(y), trained(x, training=True)
        ).mean()

    both = []
    for library in (adapted, keras.optimizers):
        trained, optimizer = model(), library.SGD(0.1, momentum=0.9)
        for _ in range(5):
            trained.zero_grad()
            loss = loss_of(trained)
            loss.backward()
            weights = trained.trainable_weights
            given = [keras.ops.clip(v.value.grad, -0.1, 0.1) for v in weights]
            with torch.no_grad():
                optimizer.apply_gradients(zip(given, weights, strict=True))
        both.append(loss_of(trained).item())
    assert both[0] == pytest.approx(both[1], rel=1e-4)


def test_a_subclass_with_variables_of_its_own() -> None:
    both = []
    for library in (adapted, keras.optimizers):

        class Remembering(library.SGD):  # type: ignore[misc, name-defined]
            def build(self, variables: Any) -> None:
                super().build(variables)
                self.last = [self.add_variable_from_reference(v, name="last") for v in variables]

            def apply(self, grads: Any, trainable_variables: Any = None) -> None:
                super().apply(grads, trainable_variables)
                for last, grad in zip(self.last, grads, strict=True):
                    last.assign(grad)

        targets, optimizer = variables(), Remembering(0.1, momentum=0.9)
        optimizer.build(targets)
        walk(optimizer, targets, range(3))
        to_clone(targets[0])
        walk(optimizer, targets, range(3, 5))
        both.append([v.numpy() for v in (*targets, *optimizer.variables)])
    for v, w in zip(*both, strict=True):
        np.testing.assert_allclose(v, w, rtol=2e-5, atol=2e-6)


def test_constraints_and_frozen_layers() -> None:
    trained = keras.Sequential(
        [
            keras.layers.Input((3,)),
            keras.layers.Dense(4, name="frozen"),
            keras.layers.Dense(1, kernel_constraint="non_neg"),
        ]
    )
    trained.layers[0].trainable = False
    trained.compile(optimizer=adapted.Adam(0.1), loss="mse")
    before = trained.layers[0].kernel.numpy()
    losses(trained, 2)
    assert (trained.layers[0].kernel.numpy() == before).all()
    assert (trained.layers[1].kernel.numpy() >= 0).all()


@pytest.mark.parametrize("every", [2, 3])
def test_variables_that_are_overwritten_by_their_gradients(every: int) -> None:
    """As the scales of float8 layers are; also where gradients are accumulated."""
    both = []
    for library in (adapted, keras.optimizers):
        targets = variables()
        targets[1].overwrite_with_gradient = True
        optimizer = library.Adam(0.1, gradient_accumulation_steps=every, use_ema=True)
        walk(optimizer, targets, range(2 * every))
        both.append([v.numpy() for v in (*targets, *optimizer.variables)])
    for v, w in zip(*both, strict=True):
        np.testing.assert_allclose(v, w, rtol=2e-5, atol=2e-6)


def test_a_number_of_accumulated_steps_that_changes() -> None:
    """Where both have whole updates, by the count that Keras' variable has now."""
    both = []
    for library in (adapted, keras.optimizers):
        targets, optimizer = variables(), library.Adam(0.1, gradient_accumulation_steps=2)
        walk(optimizer, targets, range(6))
        optimizer.gradient_accumulation_steps = 3
        walk(optimizer, targets, range(6, 10))
        optimizer._iterations.assign(6)
        optimizer.gradient_accumulation_steps = 2
        walk(optimizer, targets, range(10, 12))
        both.append([v.numpy() for v in (*targets, *optimizer.variables)])
    for v, w in zip(*both, strict=True):
        np.testing.assert_allclose(v, w, rtol=2e-5, atol=2e-6)
    optimizer, targets = adapted.SGD(0.1, gradient_accumulation_steps=2), variables()
    walk(optimizer, targets, range(2))
    optimizer.gradient_accumulation_steps = 3
    with pytest.raises(ValueError, match="would go from 2 to 3 after 2 calls, but can change where both"):
        walk(optimizer, targets, range(2, 3))


def test_variables_that_are_overwritten_and_have_no_gradient_at_an_update() -> None:
    """What was accumulated for them went on into the next update."""
    both = []
    for library in (adapted, keras.optimizers):
        targets = variables()
        targets[1].overwrite_with_gradient = True
        optimizer = library.Adam(0.1, gradient_accumulation_steps=2)
        walk(optimizer, targets, range(1))
        optimizer.apply(gradients(targets[:1], 1), targets[:1])
        for step in (2, 3):
            optimizer.apply([given / 9 for given in gradients(targets, step)], targets)
        both.append([v.numpy() for v in (*targets, *optimizer.variables)])
    for v, w in zip(*both, strict=True):
        np.testing.assert_allclose(v, w, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("name", ["Adam", "Nadam"])
def test_a_second_build_changes_nothing(name: str) -> None:
    """As Keras' does; the first one takes variables of any iterable."""
    targets, twins = variables(), variables()
    optimizer, twin = getattr(adapted, name)(0.01), getattr(adapted, name)(0.01)
    optimizer.build(iter(targets))
    for step in range(4):
        if step == 2:
            optimizer.build(targets)
        walk(optimizer, targets, range(step, step + 1))
        walk(twin, twins, range(step, step + 1))
    for v, w in zip((*targets, *optimizer.variables), (*twins, *twin.variables), strict=True):
        assert v.numpy().tobytes() == w.numpy().tobytes()


def test_steps_without_variables_and_with_those_of_any_iterable() -> None:
    """Without, they are for those that were built."""
    targets, twins = variables(), variables()
    optimizer, twin = adapted.Adam(0.01), adapted.Adam(0.01)
    for step, given in enumerate((iter(targets), None, iter(targets))):
        optimizer.apply(gradients(targets, step), given)
        walk(twin, twins, range(step, step + 1))
    assert [v.numpy().tobytes() for v in targets] == [v.numpy().tobytes() for v in twins]


# Refusals.


def test_arguments_are_checked() -> None:
    with pytest.raises(ValueError, match=r"beta_1 must lie in \[0, 1\), got 1\.0"):
        adapted.Adam(beta_1=1.0)
    with pytest.raises(NotImplementedError, match=r"Adam\.stateless_apply: steps update variables in place"):
        adapted.Adam().stateless_apply([], [], [])


def test_a_stateless_scope_is_refused() -> None:
    """As MultiOptimizer.stateless_apply makes one: steps changed the variables and the values for them."""
    targets, optimizer = variables(), adapted.Adam(0.1)
    with keras.StatelessScope(), pytest.raises(NotImplementedError, match=r"Adam\.build: .*StatelessScope"):
        optimizer.build(targets)
    optimizer.build(targets)
    values = [(v, v.value.clone()) for v in (*targets, *optimizer.variables)]
    with (
        keras.StatelessScope(values),
        pytest.raises(NotImplementedError, match=r"Adam\.apply: .*StatelessScope.*use keras\.optimizers"),
    ):
        optimizer.apply(gradients(targets, 0), targets)
    for v, value in values:
        np.testing.assert_array_equal(v.numpy(), value.numpy(force=True))
    assert int(optimizer.iterations) == 0
    walk(optimizer, targets, range(1))


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        *((name, {"epsilon": 0.0}) for name in ("Adam", "RMSprop", "Adagrad", "Adadelta", "Lamb")),
        *((name, {beta: 1.0}) for name in ("Adam", "Lion") for beta in ("beta_1", "beta_2")),
        *((name, {"rho": 1.0}) for name in ("RMSprop", "Adadelta")),
        *(("SGD", {name: -1.0}) for name in ("weight_decay", "clipnorm", "clipvalue", "global_clipnorm")),
        ("Ftrl", {"beta": -0.1}),
        ("Adam", {"amsgrad": 1}),
        ("Adam", {"gradient_accumulation_steps": 2.0}),
    ],
    ids=str,
)
def test_intervals_that_are_narrower_than_those_of_keras(name: str, arguments: dict[str, Any]) -> None:
    """As examples/keras.md tells."""
    getattr(keras.optimizers, name)(**arguments)
    (argument,) = arguments
    with pytest.raises((ValueError, TypeError), match=rf"{name}: {argument} must "):
        getattr(adapted, name)(**arguments)


def test_gradients_that_are_refused() -> None:
    """As examples/keras.md tells."""
    targets = [keras.Variable(np.ones(3, np.float32), name=name) for name in "ab"]
    other = targets[1].value.detach()
    for gradient in (torch.ones(1), torch.ones(3, dtype=torch.int32), other):
        with pytest.raises((ValueError, TypeError), match=r"SGD\.apply: grads\['a'\] "):
            adapted.SGD(0.1).apply([gradient, torch.ones(3)], targets)
    assert all((v.numpy() == 1).all() for v in targets)


@pytest.mark.parametrize("layout", ["channels_last", "transposed", "gaps"])
def test_a_gradient_of_another_shape_or_device_is_refused_whatever_the_layout(layout: str) -> None:
    """It was broadcast, or PyTorch's error, to a variable whose axes lie in another order."""
    target = laid_out(layout)
    before = target.numpy()
    for shape in ((1,), (2,), (2, 1, 1), (1, 3, 2, 2), (48,), (9, 9), (1, 4, 3, 2, 2)):
        words = f"SGD.apply: grads['kernel'] has shape {shape}, its variable has (4, 3, 2, 2)"
        with pytest.raises(ValueError, match=re.escape(words)):
            adapted.SGD(0.1).apply([torch.ones(shape)], [target])
    with pytest.raises(TypeError, match=r"SGD\.apply: grads\['kernel'\] .* on meta, but a gradient must be"):
        adapted.SGD(0.1).apply([torch.ones(4, 3, 2, 2, device="meta")], [target])
    assert (target.numpy() == before).all()


@pytest.mark.parametrize("built", [False, True])
def test_averages_of_variables_that_were_never_trained(built: bool) -> None:
    """As of the clone of a model: they were looked for in an optimizer that had none."""
    optimizer, targets, others = adapted.SGD(0.1, use_ema=True), variables(), variables()
    if built:
        walk(optimizer, targets, range(1))
    with pytest.raises(
        ValueError, match=r"SGD\.finalize_variable_values: there is no average of .* 'kernel'"
    ):
        optimizer.finalize_variable_values(others)
    assert not optimizer._siblings
    optimizer.use_ema = False
    optimizer.finalize_variable_values(others)  # as at the end of a fit
    assert [v.numpy().tobytes() for v in others] == [v.numpy().tobytes() for v in variables()]


def test_averages_are_put_into_the_variables_of_each_model() -> None:
    both = []
    for library in (adapted, keras.optimizers):
        several = [variables(), variables()]
        shared = library.SGD(0.1, use_ema=True, ema_momentum=0.7)
        other = shared if library is adapted else type(shared).from_config(shared.get_config())
        optimizers = [shared, other]
        for number, (optimizer, targets) in enumerate(zip(optimizers, several, strict=True)):
            walk(optimizer, targets, range(number, number + 3))
        for optimizer, targets in zip(optimizers, several, strict=True):
            trained = [v.numpy() for v in targets]
            optimizer.finalize_variable_values(iter(targets) if library is adapted else targets)
            assert all((v.numpy() != w).all() for v, w in zip(targets, trained, strict=True))
        both.append([v.numpy() for targets in several for v in targets])
    for v, w in zip(*both, strict=True):
        np.testing.assert_allclose(v, w, rtol=2e-5, atol=2e-6)


def test_averages_begin_with_the_variables() -> None:
    """As examples/keras.md tells: Keras' would be zeros, and 0.3 of the variables after this step."""
    optimizer, targets = adapted.SGD(0.0, use_ema=True, ema_momentum=0.7), variables()
    before = [v.numpy() for v in targets]
    optimizer.build(targets)
    optimizer.iterations.assign(100)
    for step in range(2):
        optimizer.finalize_variable_values(targets)
        for v, w in zip(targets, before, strict=True):
            np.testing.assert_allclose(v.numpy(), w, rtol=1e-6)
        walk(optimizer, targets, range(step, step + 1))


def test_signatures_of_classes_of_one_s_own() -> None:
    """Also those of further classes, and of an __init__ that comes from a class before ours."""

    class Same(adapted.AdamW):
        pass

    likes = classes_of_one_s_own(keras.optimizers.AdamW)
    for cls, like in zip(classes_of_one_s_own(adapted.AdamW), likes, strict=True):
        assert inspect.signature(cls) == inspect.signature(like)
        if sys.version_info >= (3, 11):  # before, Python takes them from Keras' __new__
            assert list(inspect.signature(cls).parameters) == ["rate"]
    assert inspect.signature(Same) == inspect.signature(adapted.AdamW)


def test_other_bases_of_a_class_of_one_s_own_hear_of_it() -> None:
    check_that_other_bases_hear_of_subclasses(adapted.AdamW)


def test_a_subclass_with_an_update_step_of_its_own_is_refused() -> None:
    """It was never called."""

    class Mixin:
        def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None: ...

    for bases in ((Mixin, adapted.Adam), (adapted.Adam,)):
        with pytest.raises(TypeError, match=r"Mine: update_step is overridden, .* override apply"):
            type("Mine", bases, {} if Mixin in bases else {"update_step": Mixin.update_step})


def test_variables_of_two_models_at_once_are_refused() -> None:
    first, second = variables(), variables()
    optimizer = adapted.Adam(0.1)
    walk(optimizer, first, range(1))
    walk(optimizer, second, range(1))
    mixed = [first[0], second[1]]
    with pytest.raises(ValueError, match="Unknown variable"):
        optimizer.apply(gradients(mixed, 0), mixed)


def test_a_model_that_has_more_variables_than_before_is_refused() -> None:
    """As by Keras; it is no second model, whose first variables would begin anew."""
    trained = model((8, 8, 1))
    trained.layers[0].trainable = False
    optimizer = adapted.Adam(0.05)
    trained.compile(optimizer=optimizer, loss="mse")
    losses(trained, 1)
    trained.layers[0].trainable = True
    trained.compile(optimizer=optimizer, loss="mse")
    before = [v.numpy() for v in trained.trainable_variables]
    with pytest.raises(ValueError, match="Unknown variable"):
        losses(trained, 1)
    assert all((v.numpy() == b).all() for v, b in zip(trained.trainable_variables, before, strict=True))
    second = variables()
    walk(optimizer, second, range(1))
    with pytest.raises(ValueError, match="Unknown variable"):
        walk(optimizer, [*variables(), *second], range(1))


@pytest.mark.parametrize("built", [False, True])
def test_a_variable_that_comes_twice_is_refused(built: bool) -> None:
    """As with the variables of two models that share a layer: one gradient would be lost."""
    optimizer, targets = adapted.Adam(0.1), variables()
    if built:
        walk(optimizer, targets, range(1))
    before = [v.numpy() for v in (*targets, *optimizer.variables)]
    twice = [*targets, targets[1]]
    verb = "apply" if built else "build"
    with pytest.raises(ValueError, match=rf"Adam\.{verb}: the variable 'bias' comes twice; pass it once"):
        optimizer.apply(gradients(twice, 0), twice)
    assert all((v.numpy() == b).all() for v, b in zip((*targets, *optimizer.variables), before, strict=True))
    walk(optimizer, targets, range(1))


def test_signatures_are_those_of_keras() -> None:
    for name in NAMES:
        ours, theirs = getattr(adapted, name), getattr(keras.optimizers, name)
        assert list(inspect.signature(ours).parameters) == list(inspect.signature(theirs).parameters)


@pytest.mark.parametrize("rate", [0.0, lambda: 0.0])
def test_ftrl_refuses_a_rate_of_0(rate: Any) -> None:
    """It divides by it."""
    targets = variables()
    optimizer = adapted.Ftrl(0.1)
    walk(optimizer, targets, range(1))
    state = [v.numpy() for v in (*targets, *optimizer.variables[2:])]
    optimizer.learning_rate = rate
    with pytest.raises(ValueError, match=r"Ftrl: learning_rate must not be .*the rule divides by it"):
        walk(optimizer, targets, range(1, 2))
    now = [v.numpy() for v in (*targets, *optimizer.variables[-len(state) + 2 :])]
    assert all((a == b).all() for a, b in zip(now, state, strict=True))
    assert int(optimizer.iterations) == 1


def test_a_sparse_gradient_is_refused() -> None:
    targets = variables()
    given = gradients(targets, 0)
    given[0] = given[0].to_sparse()
    with pytest.raises(TypeError, match=r"gradient of 'kernel' has the layout torch\.sparse_coo, .*to_dense"):
        adapted.Adam(0.1).apply(given, targets)


def test_a_sparse_gradient_is_refused_where_a_variable_has_moved() -> None:
    targets = variables()
    optimizer = adapted.Adam(0.1)
    walk(optimizer, targets, range(1))
    given = gradients(targets, 1)
    given[0] = given[0].to_sparse()
    to_clone(targets[0])
    with pytest.raises(TypeError, match=r"gradient of 'kernel' has the layout torch\.sparse_coo, .*to_dense"):
        optimizer.apply(given, targets)
    assert int(optimizer.iterations) == 1


def test_a_refused_step_changes_nothing() -> None:
    targets = variables()
    optimizer = adapted.Adam(0.1)
    walk(optimizer, targets, range(1))
    state = [v.numpy() for v in (*targets, *optimizer.variables)]
    with pytest.raises(ValueError, match=r"Adam.apply: grads\['bias'\] has shape \(5,\), its"):
        optimizer.apply([torch.zeros(3, 4), torch.zeros(5)], targets)
    now = [v.numpy() for v in (*targets, *optimizer.variables)]
    assert all((a == b).all() for a, b in zip(now, state, strict=True))


def test_another_backend_is_refused() -> None:
    program = "import keras\nkeras.backend.backend = lambda: 'jax'\nimport fusedstep.keras\n"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "RuntimeError: fusedstep.keras: Keras' backend is jax, but must be torch" in done.stderr


def test_every_class_of_the_core_that_keras_has_too() -> None:
    cores = {getattr(adapted, name)._core_class for name in NAMES}
    assert cores == {one for one in fusedstep.optimizers.ALL if hasattr(keras.optimizers, one.__name__)}
