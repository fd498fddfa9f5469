"""What a server sees of a pass follows from shapes alone, is known before the first message, and is then kept to."""

from __future__ import annotations

import pytest
import torch
from blindformer.models.delegated import running
from blindformer.models.delegated.sequences import DelegationError
from torch import Tensor, nn

WIDE = 40


def layers(count: int, outputs: int = WIDE) -> nn.ModuleList:
    return nn.ModuleList(nn.Linear(WIDE, outputs) for _ in range(count))


class Attention(nn.Module):
    """Three layers read x, and one what comes of it. `between`: what is done to x before the second reads it."""

    def __init__(self, between=lambda x: x) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = layers(4)
        self.between = between

    def forward(self, x: Tensor, **_) -> Tensor:
        x = x * 2
        q = self.q(x)
        x = self.between(x)
        return self.o(q * self.k(x) + self.v(x))


def test_what_several_layers_read_travels_once(delegate):
    x = torch.randn(2, 3, WIDE)
    delegated = delegate(Attention(), x=x)
    delegated.check(x=x)
    assert delegated.names == [["q.weight", "k.weight", "v.weight"], ["o.weight"]]
    assert delegated.carrier.sequences == [((0, 6), (1, 6))]


def test_the_same_input_is_the_same_content(delegate):
    """A copy of it is. What was changed in place between two readers is another input."""
    x = torch.randn(2, 3, WIDE)
    copied = delegate(Attention(lambda x: x.clone()), x=x)
    copied.check(x=x)
    assert copied.carrier.sequences == [((0, 6), (1, 6))]
    changed = delegate(Attention(lambda x: x.add_(1)), x=x)
    changed.check(x=x)
    assert [len(names) for names in changed.names] == [1, 2, 1]
    assert len(changed.carrier.sequences[0]) == 3


def test_an_input_that_is_changed_only_in_truth_gets_no_stale_product(delegate):
    """The rehearsals saw one input, and the pass has two: it is refused before it is sent."""
    x = torch.randn(2, 3, WIDE)
    change = torch.zeros(1)
    delegated = delegate(Attention(lambda x: x.add_(change)), x=x)
    delegated.check(x=x)
    change += 1
    with pytest.raises(DelegationError, match="nothing more was sent"):
        delegated.run(x=x)
    assert delegated.carrier.calls == 2 + 1
    assert delegated.carrier.ended == ["end", "abandon"]


def test_rows_that_are_no_numbers_change_nothing_that_is_sent(delegate):
    """Their answers are no numbers, and those of others are as they were."""
    x = torch.randn(1, 4, WIDE)
    delegated = delegate(Attention(), x=x)
    (whole,) = delegated.run(x=x).values()
    for bad in (torch.nan, torch.inf, -torch.inf):
        wrong = x.clone()
        wrong[0, 2, 5] = bad
        (answer,) = delegated.run(x=wrong).values()
        assert answer[0, 2].isnan().all()
        torch.testing.assert_close(answer[0, :2], whole[0, :2])
    assert len(set(delegated.carrier.sequences)) == 1


class Twice(nn.Module):
    """One layer, called for two inputs, as ALBERT calls its own."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.last = layers(2)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.last(self.layer(x) - self.layer(y))


def test_equal_contents_are_sent_as_often_as_others(delegate):
    """Else a server would see that they are equal."""
    x, y = torch.randn(2, 1, 3, WIDE)
    delegated = delegate(Twice(), x=x, y=y)
    delegated.check(x=x, y=y)
    delegated.run(x=x, y=x.clone())
    delegated.run(x=x, y=x)
    assert delegated.carrier.sequences == [((0, 3), (0, 3), (1, 3))] * 3
    assert delegated.carrier.calls == 9


def test_contents_that_were_equal_when_a_pass_was_rehearsed_may_differ_later(delegate):
    x, y = torch.randn(2, 1, 3, WIDE)
    delegated = delegate(Twice(), x=x, y=x)
    delegated.check(x=x, y=x)
    delegated.check(x=x, y=y)
    assert delegated.carrier.sequences == [((0, 3), (0, 3), (1, 3))] * 2


class Shared(nn.Module):
    """Layers that read one input in one place, and two inputs in another."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.o = layers(3)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.o(self.q(x) * self.k(x) + self.q(x * 2) * self.k(y * 2))


def test_equal_contents_of_different_readers_are_sent_as_often_as_others(delegate):
    x, y = torch.randn(2, 1, 3, WIDE)
    delegated = delegate(Shared(), x=x, y=y)
    delegated.check(x=x, y=y)
    delegated.run(x=x, y=x)
    assert len(set(delegated.carrier.sequences)) == 1
    assert delegated.carrier.calls == 2 * len(delegated.carrier.sequences[0])


class Experts(nn.Module):
    """Each row goes to one expert."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.router, self.last = nn.Linear(WIDE, WIDE), nn.Linear(WIDE, 3), nn.Linear(WIDE, WIDE)
        self.experts = layers(3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        out, chosen = torch.zeros_like(x), self.router(x).argmax(-1)
        for number, expert in enumerate(self.experts):
            out[chosen == number] = expert(x[chosen == number])
        return self.last(out)


class Exit(nn.Module):
    """A second layer only for what is large."""

    always = False

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = layers(3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.last(self.second(x) if self.always or x.sum() > 0 else x)


class Unpadded(nn.Module):
    """Computes real tokens alone. `by`: what tells them."""

    def __init__(self, by: str) -> None:
        super().__init__()
        self.table, self.inner, self.last = nn.Embedding(50, WIDE), *layers(2)
        self.by = by

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        x = self.table(input_ids)
        real = attention_mask.bool() if self.by == "mask" else input_ids != 7
        x = x.clone()
        x[real] = self.inner(x[real])
        return self.last(x)


class Routed(nn.Module):
    """A number of the input itself chooses the expert."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(WIDE, WIDE)
        self.experts = layers(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.experts[int(x[0, 0, 0] > x[0, 0, 1])](x))


TEXT = torch.tensor([[3, 9, 4, 7, 7, 7], [3, 5, 6, 8, 4, 7]])
PADDED = {"input_ids": TEXT, "attention_mask": (TEXT != 7).long()}
FULL = {"input_ids": torch.tensor([[3, 9, 4, 7, 6]]), "attention_mask": torch.ones(1, 5, dtype=torch.long)}
CONTENT = {
    "a mixture of experts": (Experts(), {"x": torch.randn(2, 9, WIDE)}, {"experts", "router"}),
    "an early exit": (Exit(), {"x": torch.randn(2, 9, WIDE)}, {"second"}),
    "unpadding by the mask": (Unpadded("mask"), PADDED, {"inner"}),
    "unpadding by a full mask": (Unpadded("mask"), FULL, {"inner"}),
    "unpadding by tokens": (Unpadded("tokens"), PADDED, {"inner"}),
    "an expert that the input names": (Routed(), {"x": torch.randn(1, 9, WIDE)}, {"experts"}),
}


@pytest.mark.parametrize("name", CONTENT)
def test_a_layer_whose_calls_tell_of_the_content_stays_with_the_client(delegate, name):
    module, inputs, kept = CONTENT[name]
    delegated = delegate(module, **inputs)
    assert {parameter.partition(".")[0] for parameter in delegated.runner.delegated}.isdisjoint(kept)
    assert "last.weight" in delegated.runner.delegated
    delegated.check(**inputs)
    other = {key: value.flip(1) if value.dim() > 1 else value for key, value in inputs.items()}
    delegated.run(**other)
    assert len(set(delegated.carrier.sequences)) == 1


def test_a_pass_whose_calls_depend_on_the_content_is_refused_before_its_first_message(delegate, monkeypatch):
    """Where the layer had been delegated: rehearsals of the pass with two contents find it."""
    inputs = {"x": torch.randn(2, 9, WIDE)}
    monkeypatch.setattr(Exit, "always", True)
    delegated = delegate(Exit(), **inputs)
    assert "second.weight" in delegated.runner.delegated
    monkeypatch.setattr(Exit, "always", False)
    with pytest.raises(DelegationError, match=r"model: called its layers otherwise .*nothing more was sent"):
        delegated.run(**inputs)
    assert (delegated.carrier.sequences, delegated.carrier.calls) == ([], 0)


def test_the_sequence_is_whole_before_the_first_message(delegate):
    """And is no other than what is then called: a carrier of the tests checks each call."""
    x = torch.randn(2, 3, WIDE)
    delegated = delegate(Attention(), x=x)
    heard = []
    begin = delegated.carrier.begin
    delegated.carrier.begin = lambda sequence: (heard.append((delegated.carrier.calls, sequence)), begin(sequence))
    delegated.run(x=x)
    assert heard == [(0, ((0, 6), (1, 6)))]


def test_a_pass_that_makes_other_calls_ends_before_they_are_sent(delegate, monkeypatch):
    x = torch.randn(2, 3, WIDE)
    delegated = delegate(Attention(), x=x)
    delegated.run(x=x)
    module = delegated.runner.module
    one = Attention.forward
    for forward, calls in (
        (lambda m, x: m.o(m.q(x)), 1),  # without the group's other layers
        (lambda m, x: m.q(x[:, :2]), 0),  # other rows
        (lambda m, x: one(m, x) + m.o(x), 2),  # one more
        (lambda m, x: m.k(x), 0),
    ):
        before = delegated.carrier.calls
        with monkeypatch.context() as patch:
            patch.setattr(Attention, "forward", forward)
            with pytest.raises(DelegationError, match=r"unlike its rehearsal.*nothing more was sent"):
                delegated.runner.run(delegated.carrier, module, x=x)
        assert delegated.carrier.calls == before + calls
        assert delegated.carrier.ended[-1] == "abandon"


def test_each_combination_of_shapes_is_rehearsed_once(delegate, monkeypatch):
    counted = []
    whole = running.rehearse_twice
    monkeypatch.setattr(running, "rehearse_twice", lambda *given: counted.append(1) or whole(*given))
    x = torch.randn(2, 3, WIDE)
    delegated = delegate(Attention(), x=x)
    for given in (x, x + 1, x[:1], x[:1], x):
        delegated.check(x=given)
    assert len(counted) == 2
    delegated.check(x=x, attention_mask=torch.ones(2, 3))
    delegated.check(x=x, attention_mask=torch.ones(2, 9))  # the form of a mask changes no layer's rows
    assert len(counted) == 3
    assert delegated.carrier.sequences[2] == ((0, 3), (1, 3))
