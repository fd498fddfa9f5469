"""Secure aggregation: the sum is right, the server sees no part of it, one client that drops loses no round."""

import numpy as np
import pytest
import torch
from blindformer.federated import secure, secure_client
from blindformer.federated.client_identity import ClientIdentity
from blindformer.federated.federate import federate
from blindformer.federated.messages import ARRAYS, KEYS, SECURE, SHARES, TRAIN, UNMASK, VECTOR, record, tensors
from blindformer.federated.settings import FederateError
from blindformer.federated.terms import Terms
from cryptography.hazmat.primitives.asymmetric.ec import SECP384R1, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from flwr.app import ConfigRecord

from .conftest import SMALL, of, partitions, run

SECURELY = {**SMALL, "rounds": 1, "epochs": 1, "secagg": True}


def once(data, silent=None, bend=None, **changes):
    """One round."""
    ran = run(data, {**SECURELY, **changes}, silent=silent, bend=bend)
    (round_,) = ran.rounds
    return round_, ran.state, ran.wire


def largest(a, b):
    return max(float((a[name].double() - b[name].double()).abs().max()) for name in a)


NEAR = 2.0**-secure.SCALE + 2.0**-22
"""The step of the fixed point, and the rounding of float32 weights near 1."""


def test_the_mean_is_that_of_a_plain_round(data):
    plain, expected, _ = once(data, secagg=False)
    round_, weights, _ = once(data)
    assert round_.clients == plain.clients == 4
    assert round_.loss == pytest.approx(plain.loss, abs=1e-6)
    assert largest(weights, expected) < NEAR


@pytest.mark.parametrize("kind", [KEYS, SHARES, TRAIN])
def test_a_client_that_drops_leaves_the_mean_of_the_others(data, kind):
    round_, weights, _ = once(data, {kind: [3]})
    assert (round_.clients, round_.lost) == (3, {"node 3": "did not answer in time"})
    _, expected, _ = once(data, {TRAIN: [3]}, secagg=False)
    assert largest(weights, expected) < NEAR


def test_one_may_drop_before_it_gives_its_shares(data):
    """Its vector is in the sum already; the others' shares are enough."""
    round_, weights, _ = once(data, {UNMASK: [2]})
    assert round_.clients == 4
    assert largest(weights, once(data)[1]) == 0


def test_a_vector_of_a_wrong_shape_is_named_and_counts_as_dropped(data):
    def damaged(message, answer):
        reply = answer(message)
        reply.content[ARRAYS] = record({VECTOR: tensors(reply.content.array_records[ARRAYS])[VECTOR][:-1]})
        return reply

    round_, weights, _ = once(data, bend=of(3, TRAIN, damaged))
    assert (round_.clients, round_.lost) == (3, {"client 2": "its vector has another shape"})
    assert largest(weights, once(data, {TRAIN: [3]})[1]) == 0


ODD = {
    KEYS: [{"mask": b"short"}, {"mask": "text"}, {"seal": bytes(32)}],  # the last is a point of low order
    SHARES: [
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
def test_an_answer_that_is_none_is_named_and_counts_as_dropped(data, kind, change):
    def odd(message, answer):
        reply = answer(message)
        reply.content[SECURE] = ConfigRecord({**reply.content[SECURE], **change})
        return reply

    round_, _, _ = once(data, bend=of(3, kind, odd))
    lost = {"client 2": f"sent what is no answer to {kind}"}
    assert (round_.clients, round_.lost) == (4 if kind == UNMASK else 3, lost)


def test_too_few_leave_the_model_as_it_was(data):
    ran = run(data, SECURELY, silent={TRAIN: [1, 2]})
    assert (ran.rounds[0].clients, float(ran.moved.abs().max())) == (0, 0.0)
    silent = dict.fromkeys(("node 1", "node 2"), "did not answer in time")
    assert ran.rounds[0].lost == {**silent, "round": "2 of 4 clients are left, 3 are needed for a secure sum"}


# --- what the server sees --------------------------------------------------------------------------------------------


def uniform(values):
    """Chi-square of the bytes against uniform, as a normal deviate."""
    counts = np.bincount(np.frombuffer(values.numpy().tobytes(), dtype=np.uint8), minlength=256)
    expected = counts.sum() / 256
    return (float(((counts - expected) ** 2 / expected).sum()) - 255) / (2 * 255) ** 0.5


def test_the_server_sees_only_sums(data):
    """Each vector is uniform noise, never the same twice, and unlike the one of the same training in another session;
    no reply carries a client's loss or its number of examples."""
    sessions = []
    for _ in range(2):
        _, _, wire = once(data)
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


def test_shares_travel_sealed(data):
    """What the server passes on is never what it gets in the end."""
    _, _, wire = once(data)
    boxes = [b for m in wire.received if m.metadata.message_type == SHARES for b in m.content[SECURE]["boxes"]]
    opened = [s for m in wire.received if m.metadata.message_type == UNMASK for s in m.content[SECURE]["shares"]]
    assert (len(boxes), len(set(boxes)), len(opened)) == (12, 12, 16)
    assert not any(share in box for share in opened for box in boxes)


def roster(public, name="s"):
    """What the server sends of the keys that it was sent, by id."""
    columns = {"masks": "mask", "seals": "seal", "signers": "signer", "signatures": "signature"}
    rows = {column: [keys[key] for keys in public.values()] for column, key in columns.items()}
    return ConfigRecord({"session": name, "ids": list(public), **rows})


def session(count=4):
    """Clients of a session that have sent their vectors; the server's side is this function."""
    parts, public = {}, {}
    for i in range(count):
        parts[i], public[i] = secure_client.keys("s", i)
    sent = {i: secure_client.shares(part, roster(public), count) for i, part in parts.items()}
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
    with pytest.raises(FederateError, match="not those that were sent"):
        secure_client.shares(part, roster({i: {**public, "mask": other} for i in range(3)}, "t"), 3)


def test_a_roster_of_more_clients_than_the_run_has_is_refused():
    parts = {i: secure_client.keys("s", i) for i in range(4)}
    with pytest.raises(FederateError, match="4 clients in the session of a run of 3; the server may be lying"):
        secure_client.shares(parts[0][0], roster({i: sent for i, (_, sent) in parts.items()}), 3)


@pytest.fixture(scope="module")
def wards(tmp_path_factory):
    """Keys as `ssh-keygen -t ecdsa -b 384` makes them: own ones by number, and the file of all public ones but one."""
    folder = tmp_path_factory.mktemp("wards")
    for number in range(5):
        key = generate_private_key(SECP384R1())
        private = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
        (folder / f"{number}.key").write_bytes(private)
        public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
        with (folder / "known").open("ab") as known:
            known.write(public + f" ward {number}\n".encode() if number < 4 else b"# no other\n")
    return folder


def test_with_known_keys_a_server_can_invent_no_client(wards):
    """Each of the others' keys is signed by a known one, for this node in this session, and each known one is there
    once."""
    known = [ClientIdentity.of(str(wards / f"{number}.key"), str(wards / "known")) for number in range(4)]
    stranger = ClientIdentity.of(str(wards / "4.key"), "")
    replies = {i: secure_client.keys("s", i, known[i]) for i in range(4)}
    part, public = replies[0][0], {i: dict(sent) for i, (_, sent) in replies.items()}
    before = part.stage

    def refused(number, keys, why):
        part.stage = before
        with pytest.raises(FederateError, match=why):
            secure_client.shares(part, roster({**public, number: keys}), 4, known[0])

    unsigned = "node 3 has keys that no client of its known-keys has signed"
    refused(3, dict(secure_client.keys("s", 3)[1]), unsigned)
    refused(3, dict(secure_client.keys("s", 3, stranger)[1]), unsigned)
    refused(3, dict(secure_client.keys("another", 3, known[3])[1]), unsigned)
    refused(3, dict(secure_client.keys("s", 2, known[3])[1]), unsigned)
    refused(3, {**public[3], "mask": secure.new_key()[1]}, unsigned)
    refused(3, dict(secure_client.keys("s", 3, known[2])[1]), "two nodes have keys that one client has signed")
    part.stage = before
    secure_client.shares(part, roster(public), 4, known[0])


def fewest_in_a_sum(clients: int) -> int:
    """By search: the server tells each of so many clients who is present, at least as many as the threshold, and opens
    the sum of those whose own masks it gets if it gets the keys of all others."""
    need, least = secure.threshold_of(clients), clients
    for within in range(1, clients + 1):
        for answering in range(need, clients + 1):
            votes = within * answering + (clients - within) * (answering - need)  # for "present", at most
            if votes >= answering * need:
                least = min(least, within)
    return least


@pytest.mark.parametrize("clients", range(3, 30))
def test_noise_is_shared_with_as_many_as_a_lying_server_cannot_leave_out(clients):
    part = secure_client.SecureState(members={str(i): ["", ""] for i in range(clients)})
    assert secure_client.noisy_others(part, clients - 1) == fewest_in_a_sum(clients) - 1
    assert [secure_client.noisy_others(part, n) for n in range(clients // 2)] == [0] * (clients // 2)


def test_old_keys_of_a_known_client_do_not_take_part(wards):
    """Its signature is right for a session of the same name; only who has the key can seal shares for the others."""
    known = [ClientIdentity.of(str(wards / f"{number}.key"), str(wards / "known")) for number in range(4)]
    _, old = secure_client.keys("s", 3, known[3])
    replies = {i: secure_client.keys("s", i, known[i]) for i in range(3)}
    parts, public = {i: part for i, (part, _) in replies.items()}, {i: sent for i, (_, sent) in replies.items()}
    sent = {i: secure_client.shares(part, roster({**public, 3: old}), 4, known[i]) for i, part in parts.items()}
    boxes = [sent[i]["boxes"][0] for i in (1, 2)]
    given = ConfigRecord({"session": "s", "ids": [1, 2, 3], "boxes": [*boxes, bytes(secure.BOX_BYTES)]})
    with pytest.raises(FederateError, match="node 3 sent shares that do not open: it may be of an old session"):
        secure_client.begin_vector(parts[0], given, known[0])


def test_a_run_of_clients_that_know_each_other(data, wards):
    """The one that is not known is named by all others, and takes no part."""
    nodes = partitions(4)
    for number, node in nodes.items():
        node.update({"known-keys": str(wards / "known"), "identity": str(wards / f"{number - 1}.key")})
    given = {**SMALL, "rounds": 1, "secagg": True}
    assert run(data, given, nodes=nodes).rounds[0].clients == 4
    (round_,) = run(data, given, nodes={**nodes, 4: {**nodes[4], "identity": str(wards / "4.key")}}).rounds
    assert round_.clients == 0
    assert "no client of its known-keys has signed; leave it out" in round_.lost["client 0"]
    (round_,) = run(data, {**SMALL, "rounds": 1}, nodes=nodes).rounds
    assert "secagg false is asked for, its known-keys are" in round_.lost["client 0"]


@pytest.mark.parametrize(
    ("term", "content", "why"),
    [
        ("identity", None, "cannot be read (No such file or directory)"),
        ("identity", "nonsense", "is no private key of `ssh-keygen -t ecdsa` without a passphrase"),
        ("known-keys", None, "cannot be read"),
        ("known-keys", "# nobody", "holds no key, so nobody could take part"),
        ("known-keys", "ssh-rsa AAAA", "line 1 is no public key of `ssh-keygen -t ecdsa`"),
    ],
)
def test_a_file_of_keys_that_cannot_be_used_is_named(tmp_path, term, content, why):
    file = tmp_path / "keys"
    if content is not None:
        file.write_text(content)
    with pytest.raises(FederateError) as error:
        Terms.of({term: str(file)}).who()
    assert str(error.value).startswith(f"{term}: {file}")
    assert why in str(error.value)


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
    result = federate(tmp_path / "out", data, **{**SMALL, "secagg": True, "rounds": 1, "strategy": "fedadam"})
    assert (result.rounds[0].clients, result.rounds[0].lost) == (4, {})
