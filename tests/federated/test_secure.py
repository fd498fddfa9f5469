"""Secure aggregation: the sum is right, the server sees no part of it, one client that drops loses no round."""

import numpy as np
import pytest
import torch
from blindformer.federated import secure, secure_client
from blindformer.federated.client import client_app
from blindformer.federated.examples import PARTITION, ExampleSource
from blindformer.federated.federate import federate, prepare
from blindformer.federated.grids import LocalGrid
from blindformer.federated.messages import ARRAYS, SECURE, TRAIN, UNMASK, VECTOR, record, tensors
from blindformer.federated.settings import FederateError, FederateSettings
from flwr.app import ConfigRecord

from .conftest import SMALL

SECURELY = {**SMALL, "rounds": 1, "epochs": 1, "secagg": True}


class Wire(LocalGrid):
    """Keeps what passes the server, and lets clients die: `dead` maps a kind of message to nodes that stay silent."""

    def __init__(self, *arguments, dead=None):
        super().__init__(*arguments)
        self.dead, self.sent, self.received = dead or {}, [], []

    def send_and_receive(self, messages, *, timeout=None):
        messages = list(messages)
        self.sent += messages
        kind = messages[0].metadata.message_type if messages else ""
        alive = [m for m in messages if m.metadata.dst_node_id not in self.dead.get(kind, ())]
        replies = list(super().send_and_receive(alive, timeout=timeout))
        self.received += replies
        return replies


def run(data, tmp_path, dead=None, **changes):
    """One round. (the round, the weights, the wire)."""
    settings = FederateSettings(**{**SECURELY, **changes})
    made, _ = prepare(settings, data, tmp_path / "nowhere", None)
    made.work = None
    nodes = {i + 1: {PARTITION: i} for i in range(settings.clients)}
    wire = Wire(client_app(ExampleSource(data)), nodes, settings.to_config(), dead=dead)
    (found,) = made.run(wire)
    return found, made.subject.state(), wire


def largest(a, b):
    return max(float((a[name].double() - b[name].double()).abs().max()) for name in a)


def test_the_mean_is_that_of_a_plain_round(data, tmp_path):
    """Off by less than the step of the fixed point (and the rounding of float32 weights near 1)."""
    plain, expected, _ = run(data, tmp_path, secagg=False)
    found, weights, _ = run(data, tmp_path)
    assert found.clients == plain.clients == 4
    assert found.loss == pytest.approx(plain.loss, abs=1e-6)
    assert largest(weights, expected) < 2.0**-secure.SCALE + 2.0**-22


@pytest.mark.parametrize("kind", ["train.keys", "train.shares", TRAIN])
def test_a_client_that_drops_leaves_the_mean_of_the_others(data, tmp_path, kind):
    found, weights, _ = run(data, tmp_path, dead={kind: [3]})
    assert found.clients == 3
    assert found.lost == {"node 3": "did not answer in time"}
    settings = FederateSettings(**{**SECURELY, "secagg": False})
    plain, _ = prepare(settings, data, tmp_path / "nowhere", None)
    plain.work = None
    nodes = {i + 1: {PARTITION: i} for i in range(4)}
    plain.run(Wire(client_app(ExampleSource(data)), nodes, settings.to_config(), dead={TRAIN: [3]}))
    assert largest(weights, plain.subject.state()) < 2.0**-secure.SCALE + 2.0**-22


def test_one_may_drop_before_it_gives_its_shares(data, tmp_path):
    """Its vector is in the sum already; the others' shares are enough."""
    found, weights, _ = run(data, tmp_path, dead={UNMASK: [2]})
    _, expected, _ = run(data, tmp_path)
    assert found.clients == 4
    assert largest(weights, expected) == 0


def test_a_vector_of_a_wrong_shape_is_named_and_counts_as_dropped(data, tmp_path):
    settings = FederateSettings(**SECURELY)
    made, _ = prepare(settings, data, tmp_path / "nowhere", None)
    made.work = None

    class Damaged(Wire):
        def send_and_receive(self, messages, *, timeout=None):
            replies = super().send_and_receive(messages, timeout=timeout)
            for reply in replies:
                if reply.metadata.src_node_id == 3 and ARRAYS in reply.content.array_records:
                    vector = tensors(reply.content.array_records[ARRAYS])[VECTOR]
                    reply.content[ARRAYS] = record({VECTOR: vector[:-1]})
            return replies

    nodes = {i + 1: {PARTITION: i} for i in range(4)}
    (found,) = made.run(Damaged(client_app(ExampleSource(data)), nodes, settings.to_config()))
    assert (found.clients, found.lost) == (3, {"client 2": "its vector has another shape"})
    _, expected, _ = run(data, tmp_path, dead={TRAIN: [3]})
    assert largest(made.subject.state(), expected) == 0


ODD = {
    "train.keys": [{"mask": b"short"}, {"mask": "text"}, {"seal": bytes(32)}],  # the last is a point of low order
    "train.shares": [
        {"ids": [1, 2, 2]},
        {"ids": 7},
        {"boxes": [b"short"] * 3},
        {"boxes": ["text"] * 3},
        {"digests": [bytes(64)] * 3},
        {"seed": 1},
    ],
    UNMASK: [{"ids": [1, 2, 3]}, {"shares": [bytes(65)] * 4}, {"shares": 1.5}],
}


@pytest.mark.parametrize(("kind", "change"), [(kind, change) for kind, changes in ODD.items() for change in changes])
def test_an_answer_that_is_none_is_named_and_counts_as_dropped(data, tmp_path, kind, change):
    settings = FederateSettings(**SECURELY)
    made, _ = prepare(settings, data, tmp_path / "nowhere", None)
    made.work = None

    class Odd(Wire):
        def send_and_receive(self, messages, *, timeout=None):
            replies = super().send_and_receive(messages, timeout=timeout)
            for reply in replies:
                if (reply.metadata.src_node_id, reply.metadata.message_type) == (3, kind):
                    reply.content[SECURE] = ConfigRecord({**reply.content[SECURE], **change})
            return replies

    nodes = {i + 1: {PARTITION: i} for i in range(4)}
    (found,) = made.run(Odd(client_app(ExampleSource(data)), nodes, settings.to_config()))
    assert (found.clients, found.lost) == (
        4 if kind == UNMASK else 3,
        {"client 2": f"sent what is no answer to {kind}"},
    )


def test_too_few_leave_the_model_as_it_was(data, tmp_path):
    before = prepare(FederateSettings(**SECURELY), data, tmp_path / "nowhere", None)[0].subject.state()
    found, weights, _ = run(data, tmp_path, dead={TRAIN: [1, 2]})
    assert (found.clients, largest(weights, before)) == (0, 0.0)
    silent = dict.fromkeys(("node 1", "node 2"), "did not answer in time")
    assert found.lost == {**silent, "round": "2 of 4 clients are left, 3 are needed for a secure sum"}


# --- what the server sees --------------------------------------------------------------------------------------------


def uniform(values):
    """Chi-square of the bytes against uniform, as a normal deviate."""
    counts = np.bincount(np.frombuffer(values.numpy().tobytes(), dtype=np.uint8), minlength=256)
    expected = counts.sum() / 256
    return (float(((counts - expected) ** 2 / expected).sum()) - 255) / (2 * 255) ** 0.5


def test_the_server_sees_only_sums(data, tmp_path):
    """Each vector is uniform noise, never the same twice, and unlike the one of the same training in another session;
    no reply carries a client's loss or its number of examples."""
    sessions = []
    for _ in range(2):
        _, _, wire = run(data, tmp_path)
        replies = [m for m in wire.received if m.metadata.message_type == TRAIN]
        vectors = [tensors(m.content.array_records["arrays"])[VECTOR] for m in replies]
        assert len(vectors) == 4
        for vector, reply in zip(vectors, replies, strict=True):
            assert vector.dtype == torch.int64
            assert abs(uniform(vector)) < 4
            assert dict(reply.content.metric_records["metrics"]) == {"num-examples": 1.0}
        sessions.append(vectors)
    for a, b in zip(*sessions, strict=True):
        assert abs(uniform(a - b)) < 4
        assert not bool((a == b).any())


def test_shares_travel_sealed(data, tmp_path):
    """What the server passes on is never what it gets in the end."""
    _, _, wire = run(data, tmp_path)
    boxes = [b for m in wire.received if m.metadata.message_type == "train.shares" for b in m.content[SECURE]["boxes"]]
    opened = [s for m in wire.received if m.metadata.message_type == UNMASK for s in m.content[SECURE]["shares"]]
    assert (len(boxes), len(set(boxes)), len(opened)) == (12, 12, 16)
    assert not any(share in box for share in opened for box in boxes)


def session(count=4):
    """Clients of a session that have sent their vectors; the server's side is this function."""
    parts, public = {}, {}
    for i in range(count):
        parts[i], public[i] = secure_client.keys("s", i)
    roster = {"session": "s", "ids": list(parts), "masks": [public[i]["mask"] for i in parts],
              "seals": [public[i]["seal"] for i in parts]}  # fmt: skip
    sent = {i: secure_client.shares(part, ConfigRecord(dict(roster))) for i, part in parts.items()}
    for i, part in parts.items():
        senders = [j for j in parts if j != i]
        boxes = [sent[j]["boxes"][sent[j]["ids"].index(i)] for j in senders]
        secure_client.begin_vector(part, ConfigRecord({"session": "s", "ids": senders, "boxes": boxes}))
    return parts


def asked(present, dropped, name="s"):
    return ConfigRecord({"session": name, "present": present, "dropped": dropped})


def test_no_client_opens_both_masks_of_another_and_none_answers_twice():
    parts = session()
    for part in parts.values():
        secure_client.masked(part, torch.ones(5))
    for present, dropped, why in (
        ([0, 1, 2, 3], [3], "would open a client's vector"),
        ([0, 1, 2], [], "would open a client's vector"),
        ([1, 2, 3], [0], "would open a client's vector"),
        ([0, 1], [2, 3], "too few clients are in the sum"),
    ):
        with pytest.raises(FederateError, match=why):
            secure_client.unmask(parts[0], asked(present, dropped))
    secure_client.unmask(parts[0], asked([0, 1, 2, 3], []))
    with pytest.raises(FederateError, match="came twice, or too late"):
        secure_client.unmask(parts[0], asked([0, 1, 2], [3]))
    with pytest.raises(FederateError, match="came twice, or too late"):
        secure_client.unmask(parts[1], asked([0, 1, 2, 3], [], "another"))


def test_a_forged_share_or_key_is_refused():
    parts = session()
    secure_client.masked(parts[0], torch.ones(5))
    box = parts[0].boxes["1"]
    parts[0].boxes["1"] = ("00" if box[:2] != "00" else "11") + box[2:]
    given = secure_client.unmask(parts[0], asked([0, 1, 2, 3], []))
    assert [share == bytes(secure.SHARE_BYTES) for share in given["shares"]] == [False, True, False, False]
    part, public = secure_client.keys("t", 0)
    other = secure.new_key()[1]
    given = {"session": "t", "ids": [0, 1, 2], "masks": [other] * 3, "seals": [public["seal"]] * 3}
    with pytest.raises(FederateError, match="not those that were sent"):
        secure_client.shares(part, ConfigRecord(given))


# --- parts -----------------------------------------------------------------------------------------------------------


def test_any_threshold_of_shares_gives_the_secret_and_fewer_do_not():
    secret, holders = bytes(range(32)), [7, 1, 9, 4]
    shares = secure.share(secret, 3, holders)
    for left in holders:
        some = {holder: part for holder, part in shares.items() if holder != left}
        assert secure.combine(some, 3, holders, 32) == secret
    with pytest.raises(FederateError, match="2 shares of a key are left, 3 are needed"):
        secure.combine({h: shares[h] for h in (7, 1)}, 3, holders, 32)
    with pytest.raises(FederateError, match="do not fit together"):
        secure.combine({**shares, 1: shares[7]}, 3, holders, 32)


def test_masks_of_a_pair_cancel():
    (a, public_a), (b, public_b) = secure.new_key(), secure.new_key()
    first, second = secure.pair_mask(a, public_b, "s", 9, 1, 2), secure.pair_mask(b, public_a, "s", 9, 2, 1)
    assert torch.equal(first, -second)
    assert not torch.equal(first, secure.pair_mask(a, public_b, "t", 9, 1, 2))


def test_what_does_not_fit_the_ring_is_refused():
    for bad in (float("nan"), float("inf"), 2.0**38):
        with pytest.raises(FederateError, match="not finite, or too large"):
            secure.encoded(torch.tensor([bad]), 4)
    vector = torch.tensor([0.1, -3.7, 1e-9])
    assert float((secure.decoded(secure.encoded(vector, 4)) - vector).abs().max()) <= 2.0 ** -(secure.SCALE + 1)


def test_secure_sums_go_through_a_whole_run(data, tmp_path):
    found = federate(tmp_path / "out", data, **{**SMALL, "secagg": True, "rounds": 1, "strategy": "fedadam"})
    assert (found.rounds[0].clients, found.rounds[0].lost) == (4, {})
