"""fusedstep.thinc: thinc's numbers, and pipelines of spaCy that are trained with it."""

import copy
import importlib.metadata
import inspect
import io
import pickle
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

pytest.importorskip("thinc", reason="thinc is not installed")

import thinc.api
import thinc.optimizers

import fusedstep
import fusedstep.thinc as adapted

Array = npt.NDArray[Any]
ROOT = Path(__file__).parent.parent

CASES: list[tuple[str, dict[str, Any]]] = [
    ("Adam", {}),
    ("Adam", {"learn_rate": 0.01, "L2": 0.01}),
    ("Adam", {"learn_rate": 0.01, "L2": 0.1, "L2_is_weight_decay": False}),
    ("Adam", {"grad_clip": 0.0, "beta1": 0.8, "beta2": 0.99, "eps": 1e-3}),
    ("Adam", {"use_averages": False, "grad_clip": 0.1}),
    ("Adam", {"learn_rate": 0.1, "beta2": 0.0}),  # which is plain descent
    ("Adam", {"learn_rate": [0.1, 0.05, 0.01], "beta1": [0.9, 0.8], "L2": [0.01, 0.001]}),
    ("SGD", {"learn_rate": 0.1}),
    ("SGD", {"learn_rate": 0.1, "L2": 0.001, "grad_clip": 0.5}),
    ("SGD", {"learn_rate": [0.1, 0.05], "L2": 0.1, "L2_is_weight_decay": False}),
]
copies = pytest.mark.parametrize("copied", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
every_case = pytest.mark.parametrize(("name", "arguments"), CASES, ids=lambda value: str(value))


def normal(size: int, seed: int) -> Array:
    return np.asarray(np.random.default_rng(seed).standard_normal(size), np.float32)


def as_setting(number: float) -> Any:
    """What an attribute is set to: a number, or with thinc 9 a schedule."""
    return thinc.api.constant(number) if adapted.HAS_SCHEDULES else number


def now(setting: Any) -> Any:
    return setting(0) if callable(setting) else setting


def run(optimizer: Any) -> tuple[list[Array], Any]:
    """Two parameters, of which one is updated less often."""
    rng = np.random.default_rng(0)
    weights = [rng.standard_normal(shape).astype(np.float32) for shape in ((4, 6), (6,))]
    for step in range(12):
        for name, w in zip("Wb", weights, strict=True):
            if name == "W" or step > 2:
                gradient = rng.standard_normal(w.shape).astype(np.float32)
                same, zeros = optimizer((1, name), w, gradient, lr_scale=1.0 if step < 8 else 0.5)
                assert np.shares_memory(same, w)
                assert np.shares_memory(zeros, gradient)
                assert not gradient.any()
        optimizer.step_schedules()
    return weights, optimizer


@every_case
def test_as_thinc(name: str, arguments: dict[str, Any]) -> None:
    ours, optimizer = run(getattr(adapted, name)(**arguments))
    theirs, peer = run(getattr(thinc.optimizers, name)(**arguments))
    for w, v in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(w, v, rtol=3e-5, atol=3e-6)
    assert optimizer.nr_update == peer.nr_update
    for attribute in ("mom1", "mom2", "averages"):
        mine, other = getattr(optimizer, attribute), getattr(peer, attribute)
        assert (mine is None) == (other is None)
        for key in other or {}:
            assert mine[key].shape == other[key].shape
            np.testing.assert_allclose(mine[key], other[key], rtol=3e-5, atol=3e-6)


@pytest.mark.parametrize("name", ["Adam", "RAdam"])
def test_thinc_goes_on_from_our_state(name: str) -> None:
    """It takes means with one axis alone."""
    optimizer, peer = getattr(adapted, name)(0.1), getattr(thinc.optimizers, name)(0.1)
    w = normal(6, 0).reshape(2, 3)
    optimizer((0, "W"), w, normal(6, 1).reshape(2, 3))
    for slots in ("mom1", "mom2", "averages", "nr_update"):
        setattr(peer, slots, copy.deepcopy(getattr(optimizer, slots)))
    before = w.copy()
    peer((0, "W"), w, normal(6, 2).reshape(2, 3))
    assert (w != before).all()
    assert peer.nr_update[0, "W"] == 2


@pytest.mark.parametrize("name", ["Adam", "RAdam", "SGD"])
def test_every_argument_is_passed_on(name: str) -> None:
    factories = [getattr(library, name) for library in (adapted, thinc.optimizers)]
    numbers = {"L2": 0.25, "beta1": 0.5, "beta2": 0.75, "eps": 0.125, "grad_clip": 3.0}
    others = {"L2_is_weight_decay": False, "use_averages": False}
    known = inspect.signature(factories[1]).parameters
    arguments = {key: value for key, value in (numbers | others).items() if key in known}
    attributes = ("b1", "b2", "eps", "L2", "grad_clip", "L2_is_weight_decay", "use_radam")
    for given in ({}, arguments):
        ours, theirs = (factory(0.5, **given) for factory in factories)
        for attribute in attributes:
            assert now(getattr(ours, attribute)) == now(getattr(theirs, attribute)), attribute
        assert (ours.averages is None) == (theirs.averages is None)


def test_bits_of_the_class_on_numpy_arrays() -> None:
    w = np.random.default_rng(0).standard_normal(100).astype(np.float32)
    twin = w.copy()
    optimizer, core = (
        adapted.Adam(0.01, grad_clip=0.5),
        fusedstep.Adam(0.01, epsilon=1e-8, epsilon_hat=True, clipnorm=0.5),
    )
    for step in range(5):
        gradient = np.random.default_rng(step).standard_normal(100).astype(np.float32)
        core.apply([gradient], [twin])
        optimizer((0, "W"), w, gradient)
        assert w.tobytes() == twin.tobytes()


@pytest.mark.parametrize("arguments", [{}, {"beta2": 0.99, "eps": 1e-3}, {"beta2": 0.6}], ids=str)
def test_radam(arguments: dict[str, Any]) -> None:
    """Counted from 1, as in the paper. thinc counts from 2, so it begins before its first update here."""
    arguments |= {"learn_rate": 0.01, "L2": 0.01, "use_averages": False}
    optimizer, peer = adapted.RAdam(**arguments), thinc.optimizers.RAdam(**arguments)
    peer.nr_update[0, "W"] = -1
    rng = np.random.default_rng(0)
    w = rng.standard_normal(100).astype(np.float32)
    twin = w.copy()
    for _ in range(12):
        gradient = rng.standard_normal(100).astype(np.float32)
        peer((0, "W"), twin, gradient.copy())
        optimizer((0, "W"), w, gradient)
        np.testing.assert_allclose(w, twin, rtol=3e-5, atol=3e-6)
    optimizer.use_radam = peer.use_radam = False  # from here on Adam, with the same means
    peer.nr_update[0, "W"] += 1
    optimizer((0, "W"), w, np.ones(100, np.float32))
    peer((0, "W"), twin, np.ones(100, np.float32))
    np.testing.assert_allclose(w, twin, rtol=3e-5, atol=3e-6)


def test_state_stays_with_its_key_when_the_weights_are_another_array() -> None:
    both = []
    for library in (adapted, thinc.optimizers):
        optimizer, w = library.Adam(0.1), np.ones(4, np.float32)
        for step in range(4):
            if step == 2:
                w = w.copy()
            if step == 3:
                w = w[:]  # another object over the same memory
            optimizer((0, "W"), w, np.full(4, step + 1.0, np.float32))
        both.append(w)
    np.testing.assert_allclose(both[0], both[1], rtol=1e-5)


@pytest.mark.parametrize("turned", [lambda w: w.T, lambda w: w.reshape(9)], ids=["transposed", "reshaped"])
def test_weights_that_are_turned_around_in_their_memory(turned: Any) -> None:
    both = []
    for library in (adapted, thinc.optimizers):
        optimizer, w = library.Adam(0.1, use_averages=False), normal(9, 0).reshape(3, 3)
        optimizer((0, "W"), w, normal(9, 1).reshape(3, 3))
        w, _ = optimizer((0, "W"), turned(w), normal(9, 2).reshape(turned(w).shape))
        both.append(w)
    np.testing.assert_allclose(both[0], both[1], rtol=3e-5, atol=3e-6)


@every_case
@copies
def test_copies_go_on_to_the_same_bits(copied: Any, name: str, arguments: dict[str, Any]) -> None:
    """Their state is in the attributes, which copies carry."""
    optimizer = getattr(adapted, name)(**arguments)
    weights = [normal(5, 0), normal(3, 1)]

    def go_on(with_it: Any, with_them: list[Array]) -> list[bytes]:
        for step in range(3):
            for place, w in enumerate(with_them):
                with_it((place, "W"), w, normal(len(w), 9 + step))
            with_it.step_schedules()
        kept = (with_it.mom1, with_it.mom2, with_it.averages or {})
        return [a.tobytes() for a in (*with_them, *(a for slots in kept for a in slots.values()))]

    go_on(optimizer, weights)
    twin = copied(optimizer)
    assert twin.nr_update == optimizer.nr_update == {(0, "W"): 3, (1, "W"): 3}
    assert go_on(twin, [w.copy() for w in weights]) == go_on(optimizer, weights)


@pytest.mark.parametrize("arguments", [{}, {"use_averages": False}], ids=str)
def test_state_that_is_written_counts_from_the_next_call_on(arguments: dict[str, Any]) -> None:
    """As in thinc, whose attributes are read at every call."""

    def averages_anew(optimizer: Any) -> None:
        if optimizer.averages is not None:
            optimizer.averages = {}

    def averages_off(optimizer: Any) -> None:
        optimizer.averages = None

    def averages_on(optimizer: Any) -> None:
        optimizer.averages = {}

    def momentum(optimizer: Any) -> None:
        optimizer.mom1[0, "W"] = np.full(4, 0.5, np.float32)

    def velocity(optimizer: Any) -> None:
        del optimizer.mom2[0, "W"]

    def momenta(optimizer: Any) -> None:
        optimizer.mom1, optimizer.mom2 = {}, {}

    def count(optimizer: Any) -> None:
        optimizer.nr_update[0, "W"] = 0

    def values(optimizer: Any) -> None:
        optimizer.mom1[0, "W"][:] = 0

    for change in (averages_anew, averages_off, averages_on, momentum, velocity, momenta, count, values):
        both = []
        for library in (adapted, thinc.optimizers):
            optimizer, w = library.Adam(0.01, **arguments), normal(4, 0)
            for step in range(6):
                if step in (2, 4):
                    change(optimizer)
                optimizer((0, "W"), w, normal(4, step))
            kept = (optimizer.mom1, optimizer.mom2, optimizer.averages or {})
            both.append([w, *(slots[0, "W"].ravel() for slots in kept if slots)])
            assert optimizer.nr_update[0, "W"] == (2 if change is count else 6)
        for ours, theirs in zip(*both, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=3e-5, atol=3e-6, err_msg=change.__name__)


def test_the_momentum_of_averages_does_not_grow_beyond_all_updates() -> None:
    both = []
    for library in (adapted, thinc.optimizers):
        optimizer, w = library.SGD(0.1), normal(4, 0)
        optimizer((0, "W"), w, normal(4, 1))
        optimizer.averages[0, "W"][...] = 1e4
        optimizer.nr_update[0, "W"] = 10**6
        optimizer((0, "W"), w, normal(4, 2))
        both.append(optimizer.averages[0, "W"])
    np.testing.assert_allclose(both[0], 0.9999e4, rtol=1e-6)
    np.testing.assert_allclose(both[0], both[1], rtol=1e-6)


@pytest.mark.parametrize("use_averages", [True, False])
def test_betas_can_change_to_0_and_from_it(use_averages: bool) -> None:
    """Adam becomes gradient descent and goes on, as in thinc: the means stay as they were."""
    both = []
    for library in (adapted, thinc.optimizers):
        optimizer, w = library.Adam(0.01, use_averages=use_averages), normal(6, 0).reshape(2, 3)
        for step in range(9):
            betas = (0.0, 0.0) if 3 <= step < 6 else (0.9, 0.999)
            optimizer.b1, optimizer.b2 = map(as_setting, betas)
            optimizer((0, "W"), w, normal(6, step).reshape(2, 3))
        kept = (optimizer.mom1, optimizer.mom2, *([optimizer.averages] if use_averages else []))
        both.append([w, *(slots[0, "W"] for slots in kept)])
        assert optimizer.nr_update[0, "W"] == 9
    for ours, theirs in zip(*both, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=3e-5, atol=3e-6)


def test_attributes_that_do_not_exist_cannot_be_set() -> None:
    """As in thinc: one that is misspelt was taken, and changed nothing."""
    for library in (adapted, thinc.optimizers):
        with pytest.raises(AttributeError, match="learning_rate"):
            library.Adam(0.1).learning_rate = 0.5


def test_the_updates_of_all_parameters_learn_together_whether_one_thread_is_faster() -> None:
    optimizer, other = adapted.Adam(0.5), adapted.Adam(0.5)
    for one in (optimizer, optimizer, other):
        for number in range(3):
            one((number, "W"), np.ones(2, np.float32), np.ones(2, np.float32))
    (pace,) = {updater.plan.pace for updater in optimizer._updaters.values()}
    assert pace not in {updater.plan.pace for updater in other._updaters.values()}
    assert len({updater.plan for updater in optimizer._updaters.values()}) == 3


@pytest.mark.parametrize("use_averages", [True, False])
def test_what_updates_a_parameter_is_made_once(use_averages: bool) -> None:
    """Also where its weights come as other arrays over the same memory."""
    optimizer, w = adapted.Adam(0.1, use_averages=use_averages), normal(4, 0)
    updaters = set()
    for step in range(4):
        optimizer((0, "W"), w if step % 2 else w[:], normal(4, step))
        updaters.add(optimizer._updaters[0, "W"])
    assert len(updaters) == 1


def test_a_gradient_without_elements_is_no_update() -> None:
    for library in (adapted, thinc.optimizers):
        optimizer, w, gradient = library.Adam(0.1), np.zeros((0, 2), np.float32), np.zeros((0, 2), np.float32)
        same, zeros = optimizer((0, "W"), w, gradient)
        assert same is w
        assert zeros is gradient
        assert not optimizer.nr_update


def test_a_penalty_of_0_adds_nothing() -> None:
    """Not even to a weight that is infinite, whose product with 0 is NaN."""
    w = np.array([np.inf, 1.0], np.float32)
    optimizer = adapted.SGD(0.5, L2=0.0, L2_is_weight_decay=False, grad_clip=0.0)
    optimizer((0, "W"), w, np.ones(2, np.float32))
    assert w.tolist() == [np.inf, 0.5]


def test_weights_that_are_not_contiguous_come_back_as_a_copy() -> None:
    """As thinc's do; PyTorchWrapper and others put it in the place of the weights."""
    both = []
    for library in (adapted, thinc.optimizers):
        optimizer, w = library.Adam(0.01), normal(6, 0).reshape(3, 2).T
        for step in range(3):
            w, zeros = optimizer((0, "W"), w, normal(6, step).reshape(3, 2).T)
            assert not zeros.any()
        assert w.flags.c_contiguous
        both.append(w)
    np.testing.assert_allclose(both[0], both[1], rtol=3e-5, atol=3e-6)


@pytest.mark.parametrize("cut", [lambda w: w.T, lambda w: w[:, 1:3]], ids=["transposed", "gaps"])
def test_gradient_descent_reaches_weights_of_any_layout(cut: Any) -> None:
    """As thinc's does; a copy was updated, and the weights stayed as they were."""
    both = []
    for library in (adapted, thinc.optimizers):
        optimizer, whole = library.SGD(0.1, L2=0.001), normal(12, 0).reshape(3, 4)
        w = cut(whole)
        for step in range(3):
            same, zeros = optimizer((0, "W"), w, normal(w.size, step).reshape(w.shape))
            assert same is w
            assert not zeros.any()
        both.append((whole, optimizer.averages[0, "W"]))
    for ours, theirs in zip(*both, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=3e-5, atol=3e-6)


def test_adam_without_beta1_is_not_implemented() -> None:
    """As in thinc; it was plain gradient descent."""
    for library in (adapted, thinc.optimizers):
        w = np.ones(4, np.float32)
        with pytest.raises(NotImplementedError):
            library.Adam(0.1, beta1=0.0)((0, "W"), w, np.ones(4, np.float32))
        assert (w == 1).all()


@pytest.mark.parametrize("name", ["Adam", "RAdam"])
@pytest.mark.parametrize("beta", ["beta1", "beta2"])
def test_betas_of_1_are_refused(name: str, beta: str) -> None:
    """Weights became NaN, where thinc fails with ZeroDivisionError."""
    optimizer, w = getattr(adapted, name)(0.1, **{beta: 1.0}), normal(4, 0)
    with pytest.raises(ValueError, match=rf"Adam: .*{beta} is 1\.0.*both must be below 1"):
        optimizer((0, "W"), w, normal(4, 1))
    assert w.tobytes() == normal(4, 0).tobytes()


def test_refusals() -> None:
    optimizer, w = adapted.Adam(0.1), np.ones(4, np.float32)
    optimizer((0, "W"), w, np.ones(4, np.float32))
    before = w.copy()
    with pytest.raises(ValueError, match=r"grads\['W'\] has shape \(3,\), its variable has \(4,\)"):
        optimizer((0, "W"), w, np.ones(3, np.float32))
    assert (w == before).all()
    assert optimizer.nr_update[0, "W"] == 1


@pytest.mark.parametrize("arguments", [{}, {"L2": 0.1, "L2_is_weight_decay": False}], ids=str)
@pytest.mark.parametrize("shapes", [((3,), (2, 3)), ((1,), (3,)), ((4,), (3,)), ((3,), (3,))], ids=str)
def test_a_refused_call_changes_nothing(shapes: Any, arguments: dict[str, Any]) -> None:
    """Not the gradient, and not the state of its key, where the weights are others than before."""
    optimizer, w = adapted.Adam(0.1, **arguments), normal(3, 0)
    optimizer((0, "W"), w, normal(3, 1))
    others = [np.ones(shape, np.float32) for shape in shapes]

    def state() -> list[bytes]:
        kept = [slots[0, "W"] for slots in (optimizer.mom1, optimizer.mom2, optimizer.averages)]
        return [array.tobytes() for array in (w, *others, *kept)]

    before = state()
    scale = float("nan") if shapes[0] == shapes[1] else 1.0
    with pytest.raises(ValueError, match=r"must be finite|grads\['W'\] has shape .*, its variable has"):
        optimizer((0, "W"), *others, lr_scale=scale)
    with pytest.raises(ValueError, match=r"must be finite|grads\['b'\] has shape .*, its variable has"):
        optimizer((0, "b"), *others, lr_scale=scale)
    assert state() == before
    assert dict(optimizer.nr_update) == {(0, "W"): 1}
    assert optimizer.mom1.keys() == optimizer.averages.keys() == {(0, "W")}


@pytest.mark.parametrize("decays", [True, False])
def test_settings_that_are_taken_back_after_a_refusal(decays: bool) -> None:
    """The decay or penalty that was set together with a refused number stayed in force."""
    both = []
    for refused in (False, True):
        optimizer, w = adapted.Adam(0.1, L2_is_weight_decay=decays), normal(4, 0)
        optimizer((0, "W"), w, normal(4, 1))
        if refused:
            before = optimizer.L2, optimizer.b2
            other = adapted.Adam(0.1, L2=0.5, beta2=1.0)
            optimizer.L2, optimizer.b2 = other.L2, other.b2
            with pytest.raises(ValueError, match="must be below 1"):
                optimizer((0, "W"), w, normal(4, 2))
            optimizer.L2, optimizer.b2 = before
        optimizer((0, "W"), w, normal(4, 2))
        both.append(w.tobytes())
    assert both[0] == both[1]


@pytest.mark.parametrize("key", ["W", 3, (1, 2), (1, "layer", "W"), None], ids=repr)
def test_keys_of_any_kind(key: Any) -> None:
    both = []
    for library in (adapted, thinc.optimizers):
        optimizer, w = library.Adam(0.1), normal(4, 0)
        for step in range(3):
            optimizer(key, w, normal(4, step))
        both.append(w)
        assert optimizer.nr_update == {key: 3}
    np.testing.assert_allclose(both[0], both[1], rtol=3e-5, atol=3e-6)


@pytest.mark.parametrize("decays", [True, False])
def test_numbers_of_numpy(decays: bool) -> None:
    """As schedules give them, and programs that compute lr_scale."""
    if adapted.HAS_SCHEDULES:
        pytest.skip("thinc 9 has schedules of its own")
    both = []
    for library in (adapted, thinc.optimizers):
        names = ("learn_rate", "L2", "beta1", "eps", "grad_clip")
        numbers = {name: iter(np.linspace(0.1, 0.01, 4, dtype=np.float32)) for name in names}
        optimizer, w = library.Adam(**numbers, L2_is_weight_decay=decays), normal(4, 0)
        for step in range(4):
            optimizer((0, "W"), w, normal(4, step), lr_scale=np.float32(0.1))
            optimizer.step_schedules()
        both.append(w)
    np.testing.assert_allclose(both[0], both[1], rtol=3e-5, atol=3e-6)


def test_a_model_of_thinc_learns() -> None:
    x = np.random.default_rng(0).standard_normal((64, 3)).astype(np.float32)
    y = (x @ np.array([[1.0], [-2.0], [0.5]], np.float32)).astype(np.float32)
    found = []
    for library in (adapted, thinc.optimizers):
        thinc.api.fix_random_seed(0)
        model = thinc.api.chain(thinc.api.Relu(8), thinc.api.Linear())
        model.initialize(X=x, Y=y)
        optimizer = library.Adam(0.05)
        for _ in range(20):
            guess, backprop = model.begin_update(x)
            backprop((guess - y) / len(x))
            model.finish_update(optimizer)
            optimizer.step_schedules()
        with model.use_params(optimizer.averages):
            found.append(float(((model.predict(x) - y) ** 2).mean()))
    assert found[0] < 0.5 * float((y**2).mean())
    assert found[0] == pytest.approx(found[1], rel=1e-3)


# Through spaCy.

WORDS = {
    "NOUN": ["cat", "dog", "tree", "house"],
    "VERB": ["sees", "likes", "eats"],
    "ADJ": ["red", "big", "old"],
}
GOOD, BAD = ["nice", "great"], ["awful", "poor"]

CONFIG = """
[nlp]
lang = "en"
pipeline = ["tagger", "textcat"]

[components]

[components.tagger]
factory = "tagger"

[components.textcat]
factory = "textcat"

[corpora]

[corpora.train]
@readers = "fusedstep_test.Sentences.v1"
seed = 0

[corpora.dev]
@readers = "fusedstep_test.Sentences.v1"
seed = 1

[training]
train_corpus = "corpora.train"
dev_corpus = "corpora.dev"
max_steps = 20
eval_frequency = 10
seed = 0
gpu_allocator = null

[training.optimizer]
@optimizers = "{optimizer}"
L2 = 0.01
L2_is_weight_decay = true
grad_clip = 1.0

[training.optimizer.learn_rate]
@schedules = "warmup_linear.v1"
warmup_steps = 5
total_steps = 100
initial_rate = 0.01
"""


def register_reader() -> None:
    from spacy.tokens import Doc
    from spacy.training import Example
    from spacy.util import registry

    @registry.readers("fusedstep_test.Sentences.v1")
    def sentences(seed: int) -> Callable[[Any], Iterator[Any]]:
        def read(nlp: Any) -> Iterator[Any]:
            choose = random.Random(seed)
            for k in range(60):
                tags = ["ADJ", "NOUN", "VERB", "ADJ", "NOUN"]
                words = [choose.choice(WORDS[tag]) for tag in tags]
                words.append(choose.choice((GOOD, BAD)[k % 2]))
                doc = Doc(nlp.vocab, words=words)
                cats = {"GOOD": float(k % 2 == 0), "BAD": float(k % 2 == 1)}
                yield Example.from_dict(doc, {"words": words, "tags": [*tags, "ADJ"], "cats": cats})

        return read


def train(optimizer: str) -> tuple[Any, dict[str, Any]]:
    """A pipeline that was trained by a config, and its scores."""
    import spacy
    from spacy.training.initialize import init_nlp
    from spacy.training.loop import train as train_spacy

    thinc.api.fix_random_seed(0)
    config = thinc.api.Config().from_str(CONFIG.replace("{optimizer}", optimizer))
    nlp, _ = train_spacy(init_nlp(config), stdout=io.StringIO(), stderr=io.StringIO())
    read = spacy.registry.readers.get("fusedstep_test.Sentences.v1")(1)
    return nlp, nlp.evaluate(list(read(nlp)))


@pytest.mark.filterwarnings("default")
def test_a_spacy_pipeline_comes_to_the_same_scores() -> None:
    """A tagger and a text categoriser, from blank models, by a config that names the optimizer."""
    pytest.importorskip("spacy", reason="spaCy is not installed")
    if adapted.HAS_SCHEDULES:
        pytest.skip("spaCy 3 needs thinc 8")
    register_reader()
    _, theirs = train("Adam.v1")
    nlp, ours = train("fusedstep.Adam.v1")
    for score in ("tag_acc", "cats_score"):
        assert ours[score] == pytest.approx(theirs[score], abs=0.01)
        assert ours[score] > 0.9
    assert nlp("big old cat likes red tree great").cats["GOOD"] > 0.5


@copies
def test_pipelines_are_copied_while_they_are_trained(copied: Any) -> None:
    if adapted.HAS_SCHEDULES:
        pytest.skip("spaCy 3 needs thinc 8")
    spacy = pytest.importorskip("spacy", reason="spaCy is not installed")
    register_reader()
    nlp = spacy.blank("en")
    nlp.add_pipe("tagger")
    read = spacy.registry.readers.get("fusedstep_test.Sentences.v1")(0)
    examples = list(read(nlp))[:8]
    nlp.initialize(lambda: examples, sgd=adapted.Adam(0.01))
    nlp.update(examples)
    twin = copied(nlp)
    before = nlp.get_pipe("tagger").model.to_bytes()
    for one in (nlp, twin):
        assert isinstance(one._optimizer, adapted.Optimizer)
        thinc.api.fix_random_seed(0)  # of its dropout
        one.update(examples)
    found = [one.get_pipe("tagger").model.to_bytes() for one in (nlp, twin)]
    assert found[0] == found[1] != before


def test_configs_find_the_optimizers_by_their_names() -> None:
    tomllib = pytest.importorskip("tomllib", reason="Python is older than 3.11")
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())
    points = declared["project"]["entry-points"]["thinc_optimizers"]
    assert points == {f"fusedstep.{name}.v1": f"fusedstep.thinc:{name}" for name in ("Adam", "RAdam", "SGD")}
    installed = importlib.metadata.entry_points(group="thinc_optimizers")
    assert set(points) <= {point.name for point in installed}
    config = {"optimizer": {"@optimizers": "fusedstep.Adam.v1", "learn_rate": 0.5, "grad_clip": 0.25}}
    optimizer = thinc.api.registry.resolve(config)["optimizer"]
    assert isinstance(optimizer, adapted.Optimizer)
    numbers: list[Any] = [optimizer.learn_rate, optimizer.grad_clip]
    assert list(map(now, numbers)) == [0.5, 0.25]
