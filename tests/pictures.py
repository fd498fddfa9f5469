"""The pages' pictures: who holds what in each mode, and plots of the results in bench/results."""

from __future__ import annotations

from collections.abc import Callable
from statistics import fmean
from typing import Any

from blindformer.tests.drawing import LINE, Drawing, Scale, axes
from blindformer.tests.figures import MB, kept

PEERS = {
    "blindformer, beaver": "Blindformer",
    "blindformer, crypten": "Blindformer, N parties",
    "crypten, plain": "CrypTen 0.4.1",
    "spu 0.9.5, SEMI2K": "SPU 0.9.5, SEMI2K",
    "spu 0.9.5, ABY3": "SPU 0.9.5, ABY3",
}
CURVES = {  # (weights, plan, layers): colour and name
    ("private", "faithful", 6): ("dealer", "private, faithful"),
    ("private", "fast", 6): ("server", "private, fast"),
    ("private", "fast", 3): ("client", "fast, 3 layers"),
    ("public", "faithful", 6): ("helper", "public weights"),
}


def session() -> str:
    drawing = Drawing("Private session: client and server compute on shares, the dealer makes random numbers", 325)
    parties = [
        (10, 10, 200, "client", "Client", "holds:", "text and answer", "does not learn:", "weights of layers"),
        (390, 10, 200, "server", "Server", "holds:", "the weights", "does not learn:", "text, answer"),
        (130, 200, 340, "dealer", "Dealer: colludes with nobody", "makes random numbers before", "does not learn:",
         "text, answer, weights"),
    ]  # fmt: skip
    for x, y, width, kind, *lines in parties:
        drawing.box(x, y, width, kind, *lines)
    drawing.arrow((216, 75), (384, 75), both=True)
    drawing.text(300, 62, "masked shares", "faint", "middle")
    drawing.arrow((110, 146), (110, 245), (124, 245))
    drawing.text(120, 178, "seed", "faint")
    drawing.arrow((490, 146), (490, 245), (476, 245), both=True)
    drawing.text(480, 178, "seed, corrections", "faint", "end")
    return drawing.svg()


def helper() -> str:
    drawing = Drawing("Topology helper: the client splits its text between server and helper, which compute", 560)
    drawing.box(170, 10, 260, "client", "Client", "holds:", "text and answer", "does not learn:", "private weights")
    drawing.box(10, 205, 200, "server", "Server", "holds:", "weights, a share", "does not learn:", "text, answer")
    drawing.box(370, 205, 220, "helper", "Helper", "holds:", "a share of each", "does not learn:",
                "text, answer, weights")  # fmt: skip
    drawing.box(130, 430, 340, "dealer", "Dealer: colludes with nobody", "makes random numbers before",
                "does not learn:", "text, answer, weights")  # fmt: skip
    drawing.arrow((230, 146), (130, 199), both=True)
    drawing.arrow((370, 146), (470, 199), both=True)
    drawing.text(300, 180, "one share each", "faint", "middle")
    drawing.arrow((216, 275), (364, 275), both=True)
    drawing.text(290, 262, "masked shares", "faint", "middle")
    drawing.arrow((160, 341), (220, 424), both=True)
    drawing.text(170, 400, "seed, corrections", "faint", "end")
    drawing.arrow((440, 341), (380, 424))
    drawing.text(425, 400, "seed", "faint")
    return drawing.svg()


def delegated() -> str:
    drawing = Drawing("Public model: the client runs it, the server multiplies weights with noise", 305)
    drawing.box(10, 10, 200, "client", "Client", "holds:", "text, answer, model", "checks:", "each product")
    drawing.box(390, 10, 200, "server", "Server", "holds:", "public weights W", "does not learn:", "text, answer")
    drawing.box(130, 200, 340, "dealer", "Dealer: not with the server", "computes W r - s from a seed",
                "does not learn the text")  # fmt: skip
    drawing.arrow((216, 60), (384, 60))
    drawing.text(300, 47, "q - r: noise", "faint", "middle")
    drawing.arrow((384, 110), (216, 110))
    drawing.text(300, 97, "W q - s", "faint", "middle")
    drawing.arrow((110, 146), (110, 245), (124, 245))
    drawing.text(120, 178, "its seed", "faint")
    drawing.arrow((476, 245), (490, 245), (490, 146))
    drawing.text(480, 178, "W r - s", "faint", "end")
    return drawing.svg()


def ckks() -> str:
    drawing = Drawing("Encrypted query: one server computes on ciphertexts, only the client decrypts", 150)
    drawing.box(10, 10, 200, "client", "Client", "holds:", "text, key, answer", "does not learn:", "the weights")
    drawing.box(390, 10, 200, "server", "Server", "holds:", "the weights", "does not learn:", "text, answer")
    drawing.arrow((216, 60), (384, 60))
    drawing.text(300, 47, "encrypted text", "faint", "middle")
    drawing.arrow((384, 110), (216, 110))
    drawing.text(300, 97, "encrypted answer", "faint", "middle")
    return drawing.svg()


def crypten() -> str:
    drawing = Drawing("N parties: each holds one share of every value, a dealer makes random numbers", 320)
    drawing.box(10, 10, 186, "server", "Party 1: model", "holds:", "the weights", "does not learn:", "data, answer")
    drawing.box(207, 10, 186, "client", "Data owners", "hold:", "own data", "do not learn:", "others', weights")
    drawing.box(404, 10, 186, "helper", "Recipient", "receives:", "the answer", "does not learn:", "data, weights")
    drawing.arrow((130, 146), (130, 172), (497, 172), (497, 146), both=True)
    drawing.arrow((300, 172), (300, 146))
    drawing.text(310, 194, "masked shares, each to each", "faint", "middle")
    drawing.arrow((184, 268), (50, 268), (50, 146))
    drawing.text(60, 256, "corrections", "faint")
    drawing.box(190, 226, 380, "dealer", "Dealer: colludes with nobody", "makes random numbers from all seeds",
                "does not learn data, weights, answer")  # fmt: skip
    return drawing.svg()


def federated() -> str:
    drawing = Drawing("Federated training: examples stay with the clients, the server adds up updates", 280)
    drawing.box(10, 10, 215, "client", "Client 1", "holds:", "its examples", "sends each round:", "an update")
    drawing.box(10, 170, 215, "client", "Client 2 to n", "the same, with", "their own examples")
    end = drawing.box(370, 10, 220, "server", "Server", "holds:", "the trained weights", "with --secagg:",
                      "only sums of updates", "does not receive:", "examples")  # fmt: skip
    drawing.arrow((231, 70), (364, 70), both=True)
    drawing.text(298, 57, "weights,", "faint", "middle")
    drawing.text(298, 92, "updates", "faint", "middle")
    drawing.arrow((231, 210), (480, 210), (480, end + 6), both=True)
    return drawing.svg()


def timeline() -> str:
    """One query of MiniLM, plan fast, 128 tokens: its seconds are to scale."""
    report = kept("latency-128.jsonl")[0]
    offline, online = report["offline_s"], report["online_s"]
    whole = offline + online
    drawing, at = (
        Drawing("A query over time: offline before the text is there, then online", 310),
        Scale(0, whole, 90, 580),
    )
    lanes = {"client": 80, "server": 160, "dealer": 240}
    for party, y in lanes.items():
        drawing.text(10, y + 19, party.capitalize(), party, bold=True)
        drawing.bar(at(0), y, at(offline) - at(0), 28, party, faint=True)
        if party != "dealer":
            drawing.bar(at(offline), y, at(whole) - at(offline), 28, party)
    drawing.line([(at(offline), 44), (at(offline), 275)], "ink", dashed=True)
    drawing.text(at(offline / 2), 26, f"offline: {offline:.2f} s, needs no text", "ink", "middle")
    drawing.text(at(offline + online / 2), 26, f"online: {online:.2f} s", "ink", "middle")
    drawing.text(at(offline), 64, "the text arrives ", "faint", "end")
    drawing.arrow((at(offline / 2), 236), (at(offline / 2), 192))
    drawing.text(at(offline / 2) - 10, 220, f"{report['offline_bytes'] / MB:.0f} MB", anchor="end")
    drawing.arrow((at(offline) + 18, 112), (at(offline) + 18, 156), both=True)
    drawing.text(at(offline) + 32, 140, f"{report['online_bytes'] / MB:.0f} MB, {report['rounds']} rounds")
    drawing.text(at(offline) + 8, 259, "not involved", "faint")
    for value in (0, 0.2, 0.4, 0.6):
        drawing.text(at(value), 300, f"{value:g} s", "faint", "middle")
    return drawing.svg()


def peers() -> str:
    """Seconds and megabytes of everybody, of one query of MiniLM; work that can be done ahead in a lighter shade."""
    rows = kept("peers-minilm-128.json")[0]["rows"]
    drawing, y = (
        Drawing("One query through Blindformer, CrypTen and SPU: seconds, then megabytes", 2 * (60 + 26 * len(rows))),
        0,
    )
    for name, key, unit in (("Seconds, 128 tokens", "s", 1.0), ("Megabytes of all parties", "bytes", MB)):
        online, offline = ([(row[f"{phase}_{key}"] or 0) / unit for row in rows] for phase in ("online", "offline"))
        x = Scale(0, max(map(sum, zip(online, offline, strict=True))), 220, 540)
        drawing.text(10, y + 30, name, bold=True)
        if not y:
            drawing.text(590, 30, "pale: offline, before the text is there", "faint", "end")
        for number, row in enumerate(rows):
            top, kind = y + 44 + 26 * number, "client" if row["name"].startswith("blindformer") else "faint"
            drawing.text(10, top + 16, f"{PEERS[row['name']]} ({row['parties']})")
            ahead, whole = x(online[number]), x(online[number] + offline[number])
            drawing.bar(x(0), top, ahead - x(0), 20, kind)
            drawing.bar(ahead, top, whole - ahead, 20, kind, faint=True)
            drawing.text(whole + 6, top + 16, f"{online[number] + offline[number]:.{1 if unit == 1 else 0}f}", "faint")
        y += 60 + 26 * len(rows)
    return drawing.svg()


def cost_by_length() -> str:
    """Bytes of one text through MiniLM, online and offline together; both axes are logarithmic."""
    rows = kept("costs.json")[0]["rows"]
    drawing, lengths = Drawing("Megabytes of one text by its length", 380), sorted({row["length"] for row in rows})
    x, y = Scale(lengths[0], lengths[-1], 60, 410, log=True), Scale(5, 1000, 310, 50, log=True)
    axes(drawing, x, y, ("tokens of a text", "MB, online and offline"), (lengths, (5, 10, 20, 50, 100, 200, 500, 1000)))
    for (owner, plan, layers), (kind, name) in CURVES.items():
        own = [row for row in rows if (row["weights_are"], row["plan"], row["layers"]) == (owner, plan, layers)]
        points = [(x(row["length"]), y(_moved(row))) for row in own]
        drawing.line(points, kind)
        for point in points:
            drawing.dot(*point, kind)
        drawing.text(points[-1][0] + 12, points[-1][1] + 5, name, kind)
    return drawing.svg()


def accuracy_by_cost() -> str:
    """UCI's test sentences: students in sessions of 64 tokens (means of three seeds), encrypted queries of 32."""
    drawing = Drawing("Accuracy on UCI sentences by megabytes of one text", 380)
    x, y = Scale(0.3, 300, 70, 580, log=True), Scale(88, 93, 310, 50)
    axes(drawing, x, y, ("MB of one text, online and offline", "accuracy"), ((0.5, 2, 10, 50, 200), range(88, 94)),
         ("", " %"))  # fmt: skip
    seeds = [kept(f"uci-{seed}.json")[0]["rows"] for seed in range(3)]
    costs = {
        row["layers"]: row for row in kept("costs.json")[0]["rows"] if (row["length"], row["plan"]) == (64, "fast")
    }

    def accuracy(student: str, name: str, protocol: str) -> float:
        wanted = (student, name, protocol)
        shares = [
            r["accuracy"]["value"] for rows in seeds for r in rows if (r["student"], r["name"], r["protocol"]) == wanted
        ]
        return 100 * fmean(shares)

    teacher = y(accuracy("distilled", "teacher", "torch"))
    drawing.line([(x.start, teacher), (x.end, teacher)], "faint", dashed=True)
    drawing.text(x.start + 8, teacher - 8, "the teacher in the clear", "faint")
    points = [(_moved(costs[layers]), accuracy(student, "approximated", "clear"), f"fast, {layers} layers", "server")
              for student, layers in (("distilled", 6), ("3 layers", 3))]  # fmt: skip
    for name, label in (("1-layer", "encrypted, 1 layer"), ("2-layers", "encrypted, 2 layers")):
        report = kept(f"he-uci-0-{name}.json")[0]
        points.append((report["ckks"]["mb_a_text"], 100 * report["accuracy"]["clear"]["value"], label, "client"))
    for cost, right, label, kind in points:
        drawing.dot(x(cost), y(right), kind)
        end = "end" if kind == "server" else "start"
        drawing.text(x(cost) + (-10 if end == "end" else 10), y(right) + 5, label, kind, end)
    return drawing.svg()


def federated_rounds() -> str:
    """The digits: accuracy on validation rows after each round, means of three seeds."""
    rows = kept("federated-digits.json")[0]["rows"]
    drawing, rounds = Drawing("Accuracy after each round of federated training", 380), len(rows[0]["curves"][0])
    x, y = Scale(1, rounds, 70, 580), Scale(0, 100, 310, 50)
    axes(drawing, x, y, ("rounds", "accuracy"), ((1, *range(10, rounds + 1, 10)), range(0, 101, 20)), ("", " %"))
    for number, (row, kind) in enumerate(zip(rows, ("faint", "client", "dealer"), strict=True)):
        means = [100 * fmean(seeds) for seeds in zip(*row["curves"], strict=True)]
        drawing.line([(x(at), y(mean)) for at, mean in enumerate(means, 1)], kind)
        top = y(45) + LINE * number
        drawing.line([(230, top - 5), (255, top - 5)], kind, 3)
        drawing.text(263, top, f"{row['name']}: {100 * row['accuracy']:.1f} %", kind)
    return drawing.svg()


def _moved(row: dict[str, Any]) -> float:
    return (row["online_bytes"] + row["offline_bytes"]) / MB


PICTURES: dict[str, Callable[[], str]] = {
    "who-holds-what": session,
    "who-holds-what-helper": helper,
    "who-holds-what-delegated": delegated,
    "who-holds-what-ckks": ckks,
    "who-holds-what-crypten": crypten,
    "who-holds-what-federated": federated,
    "query-timeline": timeline,
    "peers": peers,
    "cost-by-length": cost_by_length,
    "accuracy-by-cost": accuracy_by_cost,
    "federated-rounds": federated_rounds,
}
