"""fusedstep.torch in the loops that people have: groups, state, schedulers, scalers, hooks."""

import copy
import inspect
import io
import pickle
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

import fusedstep.torch as adapted  # noqa: E402
from conftest import check_that_other_bases_hear_of_subclasses  # noqa: E402

NAMES = ["SGD", "Adam", "AdamW", "RMSprop", "Adagrad", "Adadelta", "Adamax", "NAdam", "RAdam"]
ARGUMENTS: dict[str, dict[str, Any]] = {
    "SGD": {"lr": 0.01, "momentum": 0.9, "dampening": 0.5},
    "Adam": {"amsgrad": True},
    "RMSprop": {"momentum": 0.5, "centered": True},
}


def parameters(count: int = 4, dtype: Any = torch.float32) -> list[Any]:
    generator = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(3, k + 1, generator=generator).to(dtype)) for k in range(count)]


def set_gradients(params: list[Any], step: int) -> None:
    generator = torch.Generator().manual_seed(step + 1)
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator).to(p.dtype)


def values(params: list[Any]) -> list[Any]:
    return [p.detach().clone() for p in params]


def equal(first: list[Any], second: list[Any]) -> bool:
    return all(torch.equal(p, q) for p, q in zip(first, second, strict=True))


def assert_close(first: list[Any], second: list[Any], tolerance: float = 2e-5) -> None:
    for p, q in zip(first, second, strict=True):
        torch.testing.assert_close(p.detach(), q.detach(), rtol=tolerance, atol=tolerance)


def pair(name: str, **arguments: Any) -> tuple[Any, list[Any], Any, list[Any]]:
    """One optimizer of ours and one of PyTorch's, over equal parameters."""
    ours, theirs = parameters(), parameters()
    return (
        getattr(adapted, name)(ours, **arguments),
        ours,
        getattr(torch.optim, name)(theirs, foreach=False, **arguments),
        theirs,
    )


def walk(optimizer: Any, params: list[Any], steps: range) -> None:
    for step in steps:
        set_gradients(params, step)
        optimizer.step()


def native_calls(optimizer: Any) -> int:
    return len(optimizer._parts)


# Groups.


def test_groups_with_other_numbers_are_one_native_call() -> None:
    def groups(params: list[Any]) -> list[dict[str, Any]]:
        return [
            {"params": params[:1], "lr": 0.1, "weight_decay": 0.2},
            {"params": params[1:3], "betas": (0.5, 0.75), "eps": 1e-3},
            {"params": params[3:]},
        ]

    ours, theirs = parameters(), parameters()
    optimizer = adapted.AdamW(groups(ours))
    peer = torch.optim.AdamW(groups(theirs), foreach=False)
    for step in range(6):
        if step == 3:
            for each in (optimizer, peer):
                each.param_groups[1]["lr"] = 0.05
                each.param_groups[2]["betas"] = (0.8, 0.9)
        walk(optimizer, ours, range(step, step + 1))
        walk(peer, theirs, range(step, step + 1))
        assert native_calls(optimizer) == 1
        assert_close(ours, theirs)


def test_groups_with_other_rules() -> None:
    def groups(params: list[Any]) -> list[dict[str, Any]]:
        return [
            {"params": params[:1], "momentum": 0.9, "nesterov": True},
            {"params": params[1:2], "momentum": 0.9, "dampening": 0.5},
            {"params": params[2:3], "maximize": True},
            {"params": params[3:]},
        ]

    ours, theirs = parameters(), parameters()
    optimizer, peer = (
        adapted.SGD(groups(ours), lr=0.1),
        torch.optim.SGD(groups(theirs), lr=0.1, foreach=False),
    )
    walk(optimizer, ours, range(3))
    walk(peer, theirs, range(3))
    for each in (optimizer, peer):  # a group that gets a momentum on the way
        each.param_groups[3]["momentum"] = 0.5
    walk(optimizer, ours, range(3, 6))
    walk(peer, theirs, range(3, 6))
    assert_close(ours, theirs)


def test_nothing_is_made_anew_where_nothing_changed() -> None:
    """Also with a rule all of whose parameters have a state and no gradient, and where the state is saved."""
    params = parameters()
    optimizer: Any = adapted.Adam([{"params": params[:2]}, {"params": params[2:], "amsgrad": True}])
    walk(optimizer, params, range(1))
    optimizer.load_state_dict(optimizer.state_dict())
    found = set()
    for step in range(1, 6):
        set_gradients(params, step)
        if step < 4:
            params[2].grad = params[3].grad = None
        optimizer.step()
        optimizer.state_dict()
        found.add(tuple(map(id, optimizer._parts)))
    assert len(found) == 1


def test_add_param_group_keeps_the_state() -> None:
    ours, theirs = parameters(), parameters()
    optimizer, peer = adapted.NAdam(ours[:2]), torch.optim.NAdam(theirs[:2], foreach=False)
    walk(optimizer, ours, range(3))
    walk(peer, theirs, range(3))
    optimizer.add_param_group({"params": ours[2:], "lr": 0.1})
    peer.add_param_group({"params": theirs[2:], "lr": 0.1})
    walk(optimizer, ours, range(3, 6))
    walk(peer, theirs, range(3, 6))
    assert_close(ours, theirs)
    assert [optimizer.state[p]["step"].item() for p in ours] == [6, 6, 3, 3]


def test_parameters_that_never_have_a_gradient_take_no_memory() -> None:
    params = parameters()
    optimizer = adapted.Adam(params)
    params[0].grad = torch.ones_like(params[0])
    optimizer.step()
    assert list(optimizer.state) == params[:1]


def test_parameters_without_elements() -> None:
    params = [torch.nn.Parameter(torch.zeros(0, 3)), *parameters(1)]
    before = values(params)
    walk(adapted.Adam(params), params, range(2))
    assert params[0].shape == (0, 3)
    assert not torch.equal(params[1], before[1])


def test_no_gradient_at_all_changes_nothing() -> None:
    params = parameters()
    optimizer = adapted.Adam(params)
    walk(optimizer, params, range(1))
    before = values(params)
    optimizer.zero_grad()
    optimizer.step()
    assert equal(values(params), before)
    assert optimizer.state[params[0]]["step"].item() == 1


# State.


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("to_ours", [True, False], ids=["from PyTorch", "to PyTorch"])
def test_state_is_interchangeable(name: str, to_ours: bool) -> None:
    """A run that changes classes on the way, through a file, goes on as one that does not."""
    optimizer, ours, peer, theirs = pair(name, **ARGUMENTS.get(name, {}))
    for step in range(4):
        for params, each in ((ours, optimizer), (theirs, peer)):
            set_gradients(params, step)
            if step < 2:
                params[2].grad = None
            each.step()
    file = io.BytesIO()
    torch.save((peer if to_ours else optimizer).state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    params = parameters()
    with torch.no_grad():
        for p, q in zip(params, theirs if to_ours else ours, strict=True):
            p.copy_(q)
    library = adapted if to_ours else torch.optim
    after = getattr(library, name)(params)
    after.load_state_dict(state)
    walk(after, params, range(4, 8))
    walk(optimizer, ours, range(4, 8))
    walk(peer, theirs, range(4, 8))
    assert_close(params, theirs)
    assert_close(params, ours)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("way", ["state_dict", "pickle", "deepcopy"])
def test_a_resumed_run_goes_on_to_the_same_bits(way: str, dtype: Any) -> None:
    """Also of 16-bit parameters, whose slots of float32 PyTorch would round when it loads them."""
    params = parameters(dtype=dtype)
    optimizer = adapted.NAdam(params, ema=0.9)
    walk(optimizer, params, range(4))
    if way == "state_dict":
        again = [torch.nn.Parameter(p.detach().clone()) for p in params]
        other = adapted.NAdam(again, ema=0.9)
        other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    else:
        other = pickle.loads(pickle.dumps(optimizer)) if way == "pickle" else copy.deepcopy(optimizer)
        again = other.param_groups[0]["params"]
        assert other.ema == 0.9
    walk(optimizer, params, range(4, 8))
    walk(other, again, range(4, 8))
    assert equal(params, again)
    for p, q in zip(params, again, strict=True):
        for key, value in optimizer.state[p].items():
            assert torch.equal(value, other.state[q][key])


def test_state_is_live() -> None:
    params = parameters(1)
    optimizer = adapted.SGD(params, lr=1.0, momentum=0.5)
    set_gradients(params, 0)
    optimizer.step()
    optimizer.state[params[0]]["momentum_buffer"].zero_()
    before, gradient = values(params), params[0].grad.clone()
    optimizer.step()
    assert torch.equal(params[0], before[0] - gradient)


def test_the_state_of_a_parameter_outlives_the_tensors_in_it() -> None:
    ours, first, reference, theirs = pair("Adam")
    walk(ours, first, range(1))
    walk(reference, theirs, range(1))
    kept, expected = ours.state[first[0]], reference.state[theirs[0]]
    for optimizer, params in ((ours, first), (reference, theirs)):
        params.append(torch.nn.Parameter(torch.ones(2)))
        optimizer.add_param_group({"params": params[-1:]})
        walk(optimizer, params, range(1, 3))
    assert kept is ours.state[first[0]]
    assert kept["step"] == 3
    assert_close([kept["exp_avg"]], [expected["exp_avg"]])


def test_a_parameter_that_gets_other_memory_keeps_its_state() -> None:
    """As after model.to() or a weight that was loaded by assignment."""
    optimizer, ours, peer, theirs = pair("Adam")
    for step in range(4):
        if step == 2:
            for params in (ours, theirs):
                params[1].data = params[1].data.clone() + 1
        walk(optimizer, ours, range(step, step + 1))
        walk(peer, theirs, range(step, step + 1))
    assert_close(ours, theirs)
    assert optimizer.state[ours[1]]["step"].item() == 4


# What stands around a step.


def schedulers(optimizer: Any) -> list[Any]:
    return [
        torch.optim.lr_scheduler.StepLR(optimizer, step_size=2, gamma=0.5),
        torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=5),
    ]


def test_schedulers() -> None:
    optimizer, ours, peer, theirs = pair("AdamW", lr=0.1)
    for mine, other in zip(schedulers(optimizer), schedulers(peer), strict=True):
        for step in range(6):
            walk(optimizer, ours, range(step, step + 1))
            walk(peer, theirs, range(step, step + 1))
            mine.step()
            other.step()
            assert_close(ours, theirs)


def test_a_learning_rate_that_all_groups_share_is_the_steps() -> None:
    """So that a scheduler changes nothing that a GPU has to be sent. Others are the groups' own."""
    ours, theirs = parameters(), parameters()
    optimizer, peer = (
        each([{"params": params[:1], "weight_decay": 0.0}, {"params": params[1:]}], lr=0.5)
        for each, params in ((adapted.AdamW, ours), (torch.optim.AdamW, theirs))
    )
    of_groups = []
    for step, rates in enumerate([(0.5, 0.5), (0.25, 0.25), (0.25, 0.125), (0.1, 0.1), (0.3, 0.3)]):
        for each, params in ((optimizer, ours), (peer, theirs)):
            for group, rate in zip(each.param_groups, rates, strict=True):
                group["lr"] = rate
            walk(each, params, range(step, step + 1))
        of_groups.append(optimizer._parts[0].numbers)
        assert_close(ours, theirs)
    assert of_groups[0] is of_groups[1]
    assert of_groups[1] != of_groups[2]
    assert of_groups[3] is of_groups[4]


def test_a_scheduler_that_cycles_the_momentum() -> None:
    optimizer, ours, peer, theirs = pair("AdamW", lr=0.1)
    cycles = [
        torch.optim.lr_scheduler.OneCycleLR(each, max_lr=0.1, total_steps=8) for each in (optimizer, peer)
    ]
    for step in range(7):
        walk(optimizer, ours, range(step, step + 1))
        walk(peer, theirs, range(step, step + 1))
        for cycle in cycles:
            cycle.step()
        assert_close(ours, theirs)


def test_a_learning_rate_in_a_tensor() -> None:
    rate = torch.tensor(0.5)
    params = parameters(1)
    optimizer = adapted.SGD(params, lr=rate)
    set_gradients(params, 0)
    before, gradient = values(params)[0], params[0].grad
    optimizer.step()
    rate.fill_(0.25)
    optimizer.step()
    assert torch.equal(params[0], (before - 0.5 * gradient) - 0.25 * gradient)


@pytest.mark.parametrize("fused", [None, True])
def test_grad_scaler(fused: bool | None) -> None:
    """Scaled gradients are divided; a step with an infinite one is left out."""
    _, ours, peer, theirs = pair("Adam", lr=0.1)
    optimizer = adapted.Adam(ours, lr=0.1, fused=fused)  # PyTorch's divides them itself, if that is True
    scalers = [torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=2) for _ in range(2)]
    for step in range(5):
        for each, params, scaler in ((optimizer, ours, scalers[0]), (peer, theirs, scalers[1])):
            set_gradients(params, step)
            scaler.scale(torch.zeros(()))
            for p in params:
                p.grad *= scaler.get_scale()
            if step == 2:
                params[0].grad[0, 0] = float("inf")
            scaler.step(each)
            scaler.update()
    assert scalers[0].get_scale() == scalers[1].get_scale()
    assert optimizer.state[ours[0]]["step"].item() == 4
    assert_close(ours, theirs)


@pytest.mark.parametrize("name", ["SGD", "Adam"])
def test_a_first_step_in_inference_mode(name: str) -> None:
    """What it makes can be written after it, too: copies of parameters with gaps, state and averages."""
    memory = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    results = []
    for inside in (True, False):
        gapped, late = torch.nn.Parameter(memory.clone()[:, ::2]), torch.nn.Parameter(torch.ones(2))
        optimizer = getattr(adapted, name)([gapped, late], lr=0.1, ema=0.5)
        optimizer.state[late]["mine"] = 1  # it has a state, so the first step makes its slots
        set_gradients([gapped], 0)
        with torch.inference_mode(inside):
            optimizer.step()
        walk(optimizer, [gapped, late], range(1, 3))
        results.append([gapped, late, optimizer.state[gapped]["ema"], optimizer.state[late]["ema"]])
    assert equal(*results)


def test_hooks_and_closures() -> None:
    params = parameters()
    optimizer = adapted.Adam(params)
    called = []
    optimizer.register_step_pre_hook(lambda *_: called.append("before"))
    optimizer.register_step_post_hook(lambda *_: called.append("after"))

    def closure() -> Any:
        optimizer.zero_grad()
        called.append("closure")
        loss = sum(p.square().sum() for p in params)
        loss.backward()
        return loss

    first = optimizer.step(closure)
    assert called == ["before", "closure", "after"]
    assert all(optimizer.step(closure) < first for _ in range(2))


def test_autograd_sees_that_parameters_changed() -> None:
    w, v = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2))
    optimizer = adapted.SGD([w], lr=0.1)
    loss = (w * v).sum()
    w.grad = torch.ones(2)
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_autograd_sees_which_parameters_changed() -> None:
    """Not those without a gradient."""
    params = parameters(2)
    optimizer = adapted.Adam(params)
    walk(optimizer, params, range(1))
    for k, p in enumerate(params):
        before = [one._version for one in params]
        params[1 - k].grad, p.grad = None, torch.ones_like(p)
        optimizer.step()
        assert [one._version > old for one, old in zip(params, before, strict=True)] == [k == 0, k == 1]


@pytest.mark.parametrize("name", ["Adam", "NAdam", "SGD"])
def test_a_state_that_is_pickled_grows_with_its_parameters(name: str) -> None:
    """Every tensor has a storage of its own, all of which goes into a file."""

    def size(count: int) -> int:
        params = [torch.nn.Parameter(torch.zeros(2)) for _ in range(count)]
        optimizer = getattr(adapted, name)(params, **ARGUMENTS.get(name, {}))
        walk(optimizer, params, range(1))
        for state in optimizer.state.values():
            for value in state.values():
                assert value.untyped_storage().nbytes() == value.nbytes
        return len(pickle.dumps(optimizer.state_dict()))

    assert size(800) < 9 * size(100)


# What PyTorch lacks.


def test_max_norm_clips_inside_the_step() -> None:
    _, ours, peer, theirs = pair("SGD", lr=0.1, momentum=0.9)
    clipping = adapted.SGD(ours, lr=0.1, momentum=0.9, max_norm=0.5)
    for step in range(4):
        set_gradients(ours, step)
        set_gradients(theirs, step)
        given = ours[0].grad.clone()
        clipping.step()
        assert torch.equal(ours[0].grad, given)
        norm = torch.nn.utils.clip_grad_norm_(theirs, 0.5)
        peer.step()
        assert clipping.gradient_norm == pytest.approx(norm.item(), rel=1e-6)
        assert_close(ours, theirs)


def test_averages() -> None:
    params = parameters()
    optimizer = adapted.SGD(params, lr=0.1, ema=0.75)
    expected: list[Any] = []
    for step in range(4):
        walk(optimizer, params, range(step, step + 1))
        now = values(params)
        expected = now if not step else [0.75 * e + 0.25 * v for e, v in zip(expected, now, strict=True)]
    now = values(params)
    with optimizer.averaged():
        assert_close(params, expected, 1e-6)
    assert equal(params, now)


class Wrapper:
    """As Lightning wraps optimizers: derived from their class, with no attributes of theirs."""

    def __init__(self, optimizer: Any) -> None:
        self.optimizer = optimizer
        self.__class__ = type("Wrapped", (Wrapper, type(optimizer)), {})

    def __getattr__(self, name: str) -> Any:
        return getattr(self.optimizer, name)

    def step(self) -> None:
        self.optimizer.step()


def test_a_wrapper_that_asks_the_optimizer_for_what_it_lacks() -> None:
    params = parameters()
    optimizer = adapted.Adam(params, max_norm=1.0, ema=0.9)
    wrapped: Any = Wrapper(optimizer)
    walk(wrapped, params, range(3))
    assert (wrapped.max_norm, wrapped.ema) == (1.0, 0.9)
    assert wrapped.gradient_norm == optimizer.gradient_norm is not None
    with wrapped.averaged():
        assert equal(params, [optimizer.state[p]["ema"] for p in params])


def test_pytorch_has_neither_lion_nor_lamb() -> None:
    for cls in (adapted.Lion, adapted.Lamb):
        params = parameters()
        optimizer = cls(params, lr=0.1, weight_decay=0.01)
        before = values(params)
        walk(optimizer, params, range(2))
        assert not equal(params, before)
        with pytest.raises(ValueError, match=r"betas must lie in \[0, 1\)"):
            cls(params, betas=(1.0, 0.9))


@pytest.mark.parametrize("name", ["Lion", "Lamb"])
def test_a_learning_rate_in_a_tensor_stays_one(name: str) -> None:
    rate, params = torch.tensor(0.5), parameters(1)
    optimizer = getattr(adapted, name)(params, lr=rate)
    assert optimizer.param_groups[0]["lr"] is rate
    rate.fill_(0.0)
    before = values(params)
    walk(optimizer, params, range(1))
    assert equal(params, before)


# Refusals.


@pytest.mark.parametrize("name", ["Lion", "Lamb"])
def test_arguments_of_what_pytorch_lacks(name: str) -> None:
    cls, params = getattr(adapted, name), parameters(1)
    for betas in ((0.9, 0.99, 0.5), 0.9, None, (0.9,)):
        with pytest.raises(TypeError, match=rf"{name}: betas must be two numbers in \[0, 1\), got"):
            cls(params, betas=betas)
    with pytest.raises(ValueError, match=rf"{name}: lr must be a number or a tensor of one element, got"):
        cls(params, lr=torch.ones(2))
    with pytest.raises(TypeError, match=rf"{name}: lr must be a real number, got None"):
        cls(params, lr=None)
    with pytest.raises(ValueError, match=rf"{name}: lr must lie in \[0, inf\), got -1"):
        cls(params, lr=torch.tensor(-1.0))


def test_arguments_are_checked_as_pytorch_does() -> None:
    with pytest.raises(ValueError, match="Invalid learning rate"):
        adapted.Adam(parameters(), lr=-1.0)
    with pytest.raises(ValueError, match="Nesterov momentum requires"):
        adapted.SGD(parameters(), nesterov=True)
    with pytest.raises(TypeError, match="unexpected keyword"):
        adapted.Adam(parameters(), beta=1)
    with pytest.raises(ValueError, match=r"Adam: max_norm must lie in \(0, inf\), got 0.0"):
        adapted.Adam(parameters(), max_norm=0)
    with pytest.raises(ValueError, match=r"Adam: ema must lie in \[0, 1\], got 1.5"):
        adapted.Adam(parameters(), ema=1.5)
    with pytest.raises(ValueError, match="Adam: differentiable is True"):
        adapted.Adam(parameters(), differentiable=True)


def test_a_class_without_a_rule_is_refused() -> None:
    class Own(adapted.Fused, torch.optim.SGD):  # type: ignore[misc, name-defined]
        pass

    params = parameters(1)
    optimizer = Own(params, lr=0.1)
    set_gradients(params, 0)
    with pytest.raises(NotImplementedError, match=r"Own has no rule; use fusedstep\.torch\.Adam or another"):
        optimizer.step()


def test_before_the_first_step() -> None:
    """There is neither a norm nor a state; nor after one without gradients."""
    optimizer = adapted.Adam(parameters(), max_norm=1.0)
    for _ in range(2):
        assert optimizer.gradient_norm is None
        assert optimizer.state_dict()["state"] == {}
        optimizer.step()


def test_signatures_are_those_of_pytorch_with_two_more() -> None:
    for name in NAMES:
        ours = inspect.signature(getattr(adapted, name)).parameters
        theirs = inspect.signature(getattr(torch.optim, name)).parameters
        assert list(ours) == [*theirs, "max_norm", "ema"]
        assert all(ours[argument].default == theirs[argument].default for argument in theirs)


def test_signatures_of_classes_of_one_s_own() -> None:
    """Also those of further classes, and of an __init__ that comes from a class before ours."""

    class Halved(adapted.AdamW):
        def __init__(self, params: Any, rate: float = 1.0) -> None:
            super().__init__(params, lr=rate / 2)

    class Further(Halved):
        pass

    class Mixin:
        def __init__(self, params: Any, rate: float = 1.0) -> None:
            super().__init__(params, lr=rate / 2)  # type: ignore[call-arg]

    class Mixed(Mixin, adapted.AdamW):
        pass

    class Same(adapted.AdamW):
        pass

    for cls in (Halved, Further, Mixed):
        assert list(inspect.signature(cls).parameters) == ["params", "rate"]
    assert inspect.signature(Same) == inspect.signature(adapted.AdamW)


def test_other_bases_of_a_class_of_one_s_own_hear_of_it() -> None:
    check_that_other_bases_hear_of_subclasses(adapted.AdamW)


@pytest.mark.parametrize("way", ["foreach", "fused", "capturable"])
def test_arguments_that_choose_an_implementation_change_nothing(way: str) -> None:
    plain, chosen = parameters(), parameters()
    walk(adapted.Adam(plain), plain, range(3))
    walk(adapted.Adam(chosen, **{way: True}), chosen, range(3))
    assert equal(plain, chosen)


@pytest.mark.parametrize("rules", [1, 2])
@pytest.mark.parametrize("transposed", [False, True])
def test_sparse_gradients_are_refused_whole(rules: int, transposed: bool) -> None:
    """Also where a group with another rule would have been updated before."""
    params = parameters()
    if transposed:
        params[1].data = params[1].data.t().contiguous().t()
    groups = [{"params": params[:1], "amsgrad": rules == 2}, {"params": params[1:]}]
    optimizer = adapted.Adam(groups)
    set_gradients(params, 0)
    params[1].grad = params[1].grad.to_sparse()
    before = values(params)
    with pytest.raises(TypeError, match=r"Adam\.step: the gradient of a parameter of shape \(3, 2\) has"):
        optimizer.step()
    assert native_calls(optimizer) == rules
    assert equal(params, before)
    assert not optimizer.state


def test_a_learning_rate_that_is_not_finite_is_refused_whole() -> None:
    params = parameters()
    optimizer = adapted.SGD([{"params": params[:1]}, {"params": params[1:], "maximize": True}], lr=0.1)
    optimizer.param_groups[1]["lr"] = float("inf")
    set_gradients(params, 0)
    before = values(params)
    with pytest.raises(ValueError, match=r"SGD\.step: lr must be finite, got inf"):
        optimizer.step()
    assert equal(params, before)


@pytest.mark.parametrize("others", [1e39, 0.1], ids=["shared", "apart"])
def test_a_learning_rate_beyond_float32_is_refused_whole(others: float) -> None:
    params = parameters()
    optimizer = adapted.SGD([{"params": params[:1], "lr": others}, {"params": params[1:]}], lr=1e39)
    set_gradients(params, 0)
    before = values(params)
    with pytest.raises(ValueError, match=r"^SGD(\.step)?: lr must be finite in float32, got 1e\+39$"):
        optimizer.step()
    assert equal(params, before)


def test_dtypes_that_are_none_are_refused() -> None:
    p = torch.nn.Parameter(torch.zeros(2, dtype=torch.complex64))
    p.grad = torch.ones_like(p)
    with pytest.raises(TypeError, match=r"complex64, but must be real"):
        adapted.Adam([p]).step()


class Wrapped(torch.Tensor):  # type: ignore[misc,name-defined]
    """A tensor whose elements are elsewhere, as DTensor's."""

    @staticmethod
    def __new__(cls, elements: Any) -> Any:
        return torch.Tensor._make_wrapper_subclass(cls, elements.shape, dtype=elements.dtype)

    def __init__(self, elements: Any) -> None:
        self.elements = elements

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        plain = [arg.elements if isinstance(arg, Wrapped) else arg for arg in args]
        out = function(*plain, **(kwargs or {}))
        return Wrapped(out) if isinstance(out, torch.Tensor) else out


def of_fake_elements(values: Any) -> Any:
    with torch._subclasses.fake_tensor.FakeTensorMode():
        return torch.nn.Parameter(torch.empty(values.shape))


WITHOUT_MEMORY: dict[str, Any] = {
    "Wrapped": lambda values: torch.nn.Parameter(Wrapped(values)),
    "FakeTensor": of_fake_elements,
    "meta": lambda values: torch.nn.Parameter(values.to("meta")),
}


@pytest.mark.parametrize("kind", WITHOUT_MEMORY)
@pytest.mark.parametrize("strided", [False, True])
def test_parameters_without_memory_are_refused(kind: str, strided: bool) -> None:
    values = torch.ones(2, 3).t() if strided else torch.ones(2, 3)
    p, other = WITHOUT_MEMORY[kind](values), torch.nn.Parameter(torch.ones(2))
    p.grad, other.grad = torch.zeros_like(p), torch.ones(2)
    optimizer = adapted.Adam([{"params": [other]}, {"params": [p], "amsgrad": True}])
    with pytest.raises(TypeError, match=rf"Adam\.step: a parameter of shape .* no memory.*{kind}.*to_local"):
        optimizer.step()
    assert torch.equal(other, torch.ones(2))


@pytest.mark.parametrize("rules", [1, 2])
def test_gradients_without_memory_are_refused(rules: int) -> None:
    p, other = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2))
    p.grad, other.grad = torch._efficientzerotensor(2), torch.ones(2)
    optimizer = adapted.Adam([{"params": [other]}, {"params": [p], "amsgrad": rules == 2}])
    with pytest.raises(TypeError, match=r"the gradient of a parameter of shape \(2,\) .* no memory.*clone"):
        optimizer.step()
    assert torch.equal(other, torch.ones(2))


def test_an_expanded_parameter_is_refused_whole() -> None:
    p = torch.nn.Parameter(torch.ones(1, 3).expand(2, 3))
    p.grad = torch.ones(2, 3)
    optimizer = adapted.Adam([p])
    for _ in range(2):
        with pytest.raises(
            ValueError, match=r"shape \(2, 3\) has elements that share memory \(strides \(0, 1\)"
        ):
            optimizer.step()
    assert not optimizer.state


def test_a_stride_of_zero_along_an_axis_of_length_one() -> None:
    p = torch.nn.Parameter(torch.ones(3).as_strided((1, 3), (0, 1)))
    p.grad = torch.ones(1, 3)
    adapted.SGD([p], lr=0.5).step()
    assert torch.equal(p, torch.full((1, 3), 0.5))


def refusal(*params: Any, names: bool = False, lr: float = 0.1) -> str:
    optimizer = adapted.SGD([(f"p{k}", p) for k, p in enumerate(params)] if names else params, lr=lr)
    with pytest.raises((TypeError, ValueError)) as refused:
        optimizer.step()
    return str(refused.value)


def test_refusals_speak_of_parameters() -> None:
    memory = torch.ones(5)
    first, second = torch.nn.Parameter(memory[:3]), torch.nn.Parameter(memory[2:])
    first.grad, second.grad = torch.ones(3), torch.ones(3)
    assert refusal(first, second, names=True) == (
        "SGD.step: parameter 'p0' and parameter 'p1' share memory; every parameter must have its own"
    )
    assert refusal(first, lr=1e300) == "SGD: lr must be finite in float32, got 1e+300"
    for lr, product in ((0.5, "0.5 * inf"), (1.0, "inf")):
        optimizer = adapted.AdamW([first], lr=lr)
        optimizer.param_groups[0]["weight_decay"] = float("inf")
        with pytest.raises(ValueError, match="must be finite") as refused:
            optimizer.step()
        assert str(refused.value) == f"AdamW: lr times weight_decay must be finite in float32, got {product}"
    third = torch.nn.Parameter(torch.ones(3))
    third.grad = second.data
    assert refusal(first, third) == (
        "SGD.step: the gradient of a parameter of shape (3,) shares memory with a parameter of shape (3,),"
        " which this step writes; pass p.grad.clone()"
    )
    whole = torch.nn.Parameter(torch.ones(2, dtype=torch.int32), requires_grad=False)
    whole.grad = torch.ones(2, dtype=torch.int32)
    assert "a parameter of shape (2,) is of type" in refusal(whole)
    assert "variable" not in refusal(whole)


def test_max_norm_needs_one_rule() -> None:
    params = parameters()
    optimizer = adapted.Adam([{"params": params[:2], "amsgrad": True}, {"params": params[2:]}], max_norm=1.0)
    set_gradients(params, 0)
    with pytest.raises(ValueError, match="max_norm is for parameters of one rule on one device"):
        optimizer.step()


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # Dynamo's own
@pytest.mark.filterwarnings("ignore:Guards may run slower:RuntimeWarning")  # Dynamo's, on 3.13.0
def test_a_step_in_a_function_that_is_compiled() -> None:
    """What is around the step is compiled; Dynamo, which warns of all it cannot trace, leaves it alone."""

    def train(compiled: bool) -> tuple[list[float], list[Any]]:
        params = parameters()
        optimizer = adapted.AdamW(params, lr=0.1, max_norm=1.0)

        def update() -> Any:
            optimizer.zero_grad()
            loss = sum((p**2).sum() for p in params)
            loss.backward()
            optimizer.step()
            return loss

        step = torch.compile(update, backend="eager") if compiled else update
        return [step().item() for _ in range(4)], values(params)

    (losses, first), (compiled_losses, second) = train(False), train(True)
    assert compiled_losses == losses
    assert losses[3] < losses[0]
    assert equal(first, second)
