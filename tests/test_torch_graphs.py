"""fusedstep.torch's own part in CUDA graphs: when steps are counted, and what their learning rate is.

There is no GPU here: a plan of the CPU keeps the step that is captured, and makes it when it is replayed.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

import fusedstep.torch as adapted  # noqa: E402

CLASSES = ["SGD", "Adam", "RMSprop", "Adagrad", "Adadelta", "Adamax", "RAdam", "Lion", "Lamb"]


class GraphedPlan:
    """A plan that can be captured."""

    def __init__(self, plan: Any) -> None:
        self._plan, self._capturing, self.is_captured = plan, False, False
        self.rates: list[Any] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._plan, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("updates", "calls"):
            assert not self._capturing, "to write counts would wait"
            setattr(self._plan, name, value)
        else:
            super().__setattr__(name, value)

    def is_capturing(self) -> bool:
        return self._capturing

    def step(self, grads: Any, variables: Any, rate: Any) -> int:
        self.rates.append(rate)
        if self._capturing:
            self.is_captured, self._graph = True, (list(grads), float(rate))
            return 0
        calls: int = self._plan.step(grads, variables, float(rate))
        return calls

    @contextmanager
    def capture(self) -> Iterator[None]:
        self._capturing = True
        try:
            yield
        finally:
            self._capturing = False

    def replay(self) -> None:
        grads, rate = self._graph
        self._plan.step(grads, None, rate)


class Run:
    """An optimizer over three parameters in two groups; the same seed gives the same gradients."""

    def __init__(self, name: str, **options: Any) -> None:
        generator = torch.Generator().manual_seed(0)
        self.params = [
            torch.nn.Parameter(torch.randn(size, generator=generator)) for size in ((5,), (1,), (4, 3))
        ]
        groups = [{"params": self.params[:2]}, {"params": self.params[2:], "lr": 0.25}]
        self.optimizer = getattr(adapted, name)(groups, lr=0.5, **options)
        for p in self.params:
            p.grad = torch.zeros_like(p)

    def fill(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for p in self.params:
            values = torch.randn(p.shape, generator=generator)
            if p.grad is None:
                p.grad = values
            else:
                p.grad.copy_(values)

    def step(self, seed: int) -> None:
        self.fill(seed)
        self.optimizer.step()

    def graphed(self) -> GraphedPlan:
        (part,) = self.optimizer._parts
        part.on_gpu, part.plan = True, GraphedPlan(part.plan)
        plan: GraphedPlan = part.plan
        return plan

    def bits(self) -> Any:
        state = copy.deepcopy(self.optimizer.state_dict())
        return [p.tolist() for p in self.params], {
            number: {name: value.tolist() for name, value in of.items()}
            for number, of in state["state"].items()
        }


def captured(run: Run, eager: Run) -> GraphedPlan:
    """After two steps each, one of the first is captured and replayed three times; the other steps."""
    for one in (run, eager):
        one.step(0)
        one.step(1)
    plan, before = run.graphed(), run.bits()
    with plan.capture():
        run.optimizer.step()
    assert run.bits() == before, "a capture makes no step"
    for seed in (2, 3, 4):
        run.fill(seed)
        plan.replay()
        eager.step(seed)
    return plan


@pytest.mark.parametrize("options", [{}, {"ema": 0.5}], ids=str)
@pytest.mark.parametrize("name", CLASSES)
def test_replays_are_counted(name: str, options: dict[str, Any]) -> None:
    run, eager = Run(name, **options), Run(name, **options)
    captured(run, eager)
    assert run.bits() == eager.bits()
    assert run.bits() == eager.bits(), "and only once"
    run.step(5)
    eager.step(5)
    assert run.bits() == eager.bits()


@pytest.mark.parametrize("way", ["pickle", "no gradient", "another group", "another state"])
def test_replays_are_counted_before_counts_are_used(way: str) -> None:
    """A step that sorts its parameters anew starts from them, and so does a copy."""
    run, eager = Run("Adam"), Run("Adam")
    captured(run, eager)
    for one in (run, eager):
        if way == "pickle":
            one.optimizer = copy.deepcopy(one.optimizer)
            one.params = [p for group in one.optimizer.param_groups for p in group["params"]]
        if way == "no gradient":
            one.params[0].grad = None
            one.optimizer.step()
        if way == "another group":
            one.params.append(torch.nn.Parameter(torch.ones(2)))
            one.optimizer.add_param_group({"params": one.params[3:], "lr": 1.0})
        if way == "another state":
            one.optimizer.load_state_dict(copy.deepcopy(one.optimizer.state_dict()))
        one.step(6)
    assert run.bits() == eager.bits()


def test_what_a_host_alone_advances_is_not_captured() -> None:
    run = Run("NAdam")
    run.step(0)
    plan, before = run.graphed(), run.bits()
    with (
        plan.capture(),
        pytest.raises(RuntimeError, match=r"NAdam\.step: a graph is captured, but the product of NAdam's"),
    ):
        run.optimizer.step()
    assert run.bits() == before
    assert plan.rates == []


def test_a_learning_rate_on_the_gpu_of_all_parameters_is_read_there(monkeypatch: Any) -> None:
    """One that is shared; nobody looks at it here."""
    for module in ("part", "fused"):
        monkeypatch.setattr(f"fusedstep.torch.{module}.is_on_gpu", torch.is_tensor)
    for shape in ((), (1,)):
        w, rate = torch.nn.Parameter(torch.zeros(3)), torch.full(shape, 0.5)
        optimizer = adapted.SGD([w], lr=1.0)
        w.grad = torch.ones(3)
        optimizer.step()
        (part,) = optimizer._parts
        part.plan = plan = GraphedPlan(part.plan)  # type: ignore[assignment]
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
        rate.fill_(2.0)
        optimizer.step()
        assert w.tolist() == [-3.5] * 3
        for given in plan.rates:
            assert (given.data_ptr(), given.shape) == (rate.data_ptr(), ())
    # Of groups that have different ones they are asked.
    other = torch.nn.Parameter(torch.zeros(3))
    other.grad = torch.ones(3)
    optimizer.add_param_group({"params": [other], "lr": torch.tensor(4.0)})
    optimizer.step()
    assert (w.tolist(), other.tolist()) == ([-5.5] * 3, [-4.0] * 3)
