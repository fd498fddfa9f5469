"""The pages' pictures: who holds what in each mode, and plots of the results in bench/results."""

from __future__ import annotations

from collections.abc import Callable
from statistics import fmean
from typing import Any

from blindformer.tests.drawing import LINE, Drawing, Scale, axes
from blindformer.tests.figures import MB, kept

PEERS = {
    "blindformer, beaver": "Blindformer",
    "blindformer, crypten": "N parties",
    "crypten, plain": "CrypTen",
    "spu 0.9.5, SEMI2K": "SPU SEMI2K",
    "spu 0.9.5, ABY3": "SPU ABY3",
}
CURVES = {  # (weights, plan, layers): colour and name
    ("private", "faithful", 6): ("dealer", "private, faithful"),
    ("private", "fast", 6): ("server", "private, fast"),
    ("private", "fast", 3): ("client", "fast, 3 layers"),
    ("public", "faithful", 6): ("helper", "public weights"),
}


def session() -> str:
    drawing = Drawing("Private session: client and server compute on shares, the dealer makes random numbers", 375)
    parties = [
        (10, 10, 224, "client", "Client", "holds:", "text and answer", "does not learn:", "weights of layers"),
        (366, 10, 224, "server", "Server", "holds:", "the weights", "does not learn:", "text, answer"),
        (110, 235, 380, "dealer", "Dealer: colludes with nobody", "makes random numbers before", "does not learn:",
         "text, answer, weights"),
    ]  # fmt: skip
    for x, y, width, kind, *lines in parties:
        drawing.box(x, y, width, kind, *lines)
    drawing.arrow((240, 88), (360, 88), both=True)
    drawing.text(300, 74, "masked", "faint", "middle")
    drawing.text(300, 116, "shares", "faint", "middle")
    drawing.arrow((60, 171), (60, 300), (104, 300))
    drawing.text(70, 212, "seed", "faint")
    drawing.arrow((540, 171), (540, 300), (496, 300), both=True)
    drawing.text(530, 212, "seed, corrections", "faint", "end")
    return drawing.svg()


def helper() -> str:
    drawing = Drawing("Topology helper: the client splits its text between server and helper, which compute", 640)
    drawing.box(170, 10, 260, "client", "Client", "holds:", "text and answer", "does not learn:", "private weights")
    drawing.box(10, 240, 224, "server", "Server", "holds:", "weights, a share", "does not learn:", "text, answer")
    drawing.box(366, 240, 224, "helper", "Helper", "holds:", "a share of each", "does not learn:", "text, answer,",
                "weights")  # fmt: skip
    drawing.box(110, 500, 380, "dealer", "Dealer: colludes with nobody", "makes random numbers before",
                "does not learn:", "text, answer, weights")  # fmt: skip
    drawing.arrow((230, 171), (130, 234), both=True)
    drawing.arrow((370, 171), (470, 234), both=True)
    drawing.text(300, 212, "one share each", "faint", "middle")
    drawing.arrow((240, 318), (360, 318), both=True)
    drawing.text(300, 304, "masked", "faint", "middle")
    drawing.text(300, 346, "shares", "faint", "middle")
    drawing.arrow((150, 401), (200, 494), both=True)
    drawing.text(194, 455, "seed, corrections", "faint")
    drawing.arrow((470, 428), (420, 494))
    drawing.text(462, 474, "seed", "faint")
    return drawing.svg()


def delegated() -> str:
    drawing = Drawing("Public model: the client runs it, the server multiplies weights with noise", 350)
    drawing.box(10, 10, 250, "client", "Client", "holds:", "text, answer, model", "checks:", "each product")
    drawing.box(376, 10, 214, "server", "Server", "holds:", "public weights W", "does not learn:", "text, answer")
    drawing.box(110, 235, 380, "dealer", "Dealer: not with the server", "computes W r - s from a seed",
                "does not learn the text")  # fmt: skip
    drawing.arrow((266, 60), (370, 60))
    drawing.text(318, 47, "q - r", "faint", "middle")
    drawing.text(318, 84, "noise", "faint", "middle")
    drawing.arrow((370, 128), (266, 128))
    drawing.text(318, 115, "W q - s", "faint", "middle")
    drawing.arrow((60, 171), (60, 285), (104, 285))
    drawing.text(70, 212, "its seed", "faint")
    drawing.arrow((496, 285), (540, 285), (540, 171))
    drawing.text(530, 212, "W r - s", "faint", "end")
    return drawing.svg()


def ckks() -> str:
    drawing = Drawing("Encrypted query: one server computes on ciphertexts, only the client decrypts", 180)
    drawing.box(10, 10, 224, "client", "Client", "holds:", "text, key, answer", "does not learn:", "the weights")
    drawing.box(366, 10, 224, "server", "Server", "holds:", "the weights", "does not learn:", "text, answer")
    drawing.arrow((240, 58), (360, 58))
    drawing.text(300, 46, "encrypted", "faint", "middle")
    drawing.text(300, 80, "text", "faint", "middle")
    drawing.arrow((360, 126), (240, 126))
    drawing.text(300, 114, "encrypted", "faint", "middle")
    drawing.text(300, 148, "answer", "faint", "middle")
    return drawing.svg()


def crypten() -> str:
    drawing = Drawing("N parties: each holds one share of every value, a dealer makes random numbers", 590)
    drawing.box(10, 10, 250, "server", "Party 1: model", "holds:", "the weights", "does not learn:", "data, answer")
    drawing.box(340, 10, 250, "client", "Data owners", "hold:", "own data", "do not learn:", "others', weights")
    drawing.box(175, 235, 250, "helper", "Recipient", "receives:", "the answer", "does not learn:", "data, weights")
    drawing.arrow((266, 88), (334, 88), both=True)
    drawing.arrow((135, 171), (215, 229), both=True)
    drawing.arrow((465, 171), (385, 229), both=True)
    drawing.text(300, 205, "masked shares", "faint", "middle")
    drawing.arrow((94, 510), (40, 510), (40, 171))
    drawing.text(50, 430, "corrections", "faint")
    drawing.box(100, 450, 400, "dealer", "Dealer: colludes with nobody", "makes random numbers from",
                "all seeds; does not learn", "data, weights, answer")  # fmt: skip
    return drawing.svg()


def federated() -> str:
    drawing = Drawing("Federated training: examples stay with the clients, the server adds up updates", 315)
    drawing.box(10, 10, 224, "client", "Client 1", "holds:", "its examples", "sends each round:", "an update")
    drawing.box(10, 200, 224, "client", "Client 2 to n", "the same, with", "own examples")
    end = drawing.box(342, 10, 248, "server", "Server", "holds:", "the trained weights", "with --secagg:",
                      "sums of updates", "does not receive:", "examples")  # fmt: skip
    drawing.arrow((240, 75), (336, 75), both=True)
    drawing.text(288, 61, "weights", "faint", "middle")
    drawing.text(288, 104, "updates", "faint", "middle")
    drawing.arrow((240, 260), (466, 260), (466, end + 6), both=True)
    return drawing.svg()


def timeline() -> str:
    """One query of MiniLM, plan fast, 128 tokens: its seconds are to scale."""
    report = kept("latency-128.jsonl")[0]
    offline, online = report["offline_s"], report["online_s"]
    whole = offline + online
    drawing, at = (
        Drawing("A query over time: offline before the text is there, then online", 310),
        Scale(0, whole, 98, 585),
    )
    lanes = {"client": 80, "server": 160, "dealer": 240}
    for party, y in lanes.items():
        drawing.text(10, y + 21, party.capitalize(), party, bold=True)
        drawing.bar(at(0), y, at(offline) - at(0), 28, party, faint=True)
        if party != "dealer":
            drawing.bar(at(offline), y, at(whole) - at(offline), 28, party)
    drawing.line([(at(offline), 40), (at(offline), 275)], "ink", dashed=True)
    drawing.text(at(offline / 2), 26, f"offline: {offline:.2f} s", "ink", "middle")
    drawing.text(at(offline / 2), 60, "needs no text", "faint", "middle")
    drawing.text(at(offline + online / 2), 26, f"online: {online:.2f} s", "ink", "middle")
    drawing.text(at(offline) + 10, 60, "the text arrives", "faint")
    drawing.arrow((at(offline / 2), 236), (at(offline / 2), 192))
    drawing.text(at(offline / 2) - 10, 220, f"{report['offline_bytes'] / MB:.0f} MB", anchor="end")
    drawing.arrow((at(offline) + 18, 112), (at(offline) + 18, 156), both=True)
    drawing.text(at(offline) + 32, 130, f"{report['online_bytes'] / MB:.0f} MB,")
    drawing.text(at(offline) + 32, 153, f"{report['rounds']} rounds")
    drawing.text(at(offline) + 10, 261, "not involved", "faint")
    for value in (0, 0.2, 0.4, 0.6):
        drawing.text(at(value), 300, f"{value:g} s", "faint", "middle")
    return drawing.svg()


def peers() -> str:
    """Seconds and megabytes of everybody, of one query of MiniLM; work that can be done ahead in a lighter shade."""
    rows = kept("peers-minilm-128.json")[0]["rows"]
    drawing, y = (
        Drawing(
            "One query through Blindformer, CrypTen and SPU: seconds, then megabytes", 2 * (50 + 32 * len(rows)) + LINE
        ),
        0,
    )
    for name, key, unit in (("Seconds, 128 tokens", "s", 1.0), ("Megabytes of all parties", "bytes", MB)):
        online, offline = ([(row[f"{phase}_{key}"] or 0) / unit for row in rows] for phase in ("online", "offline"))
        x = Scale(0, max(map(sum, zip(online, offline, strict=True))), 190, 525)
        drawing.text(10, y + 30, name, bold=True)
        if not y:
            drawing.text(10, 30 + LINE, "pale: offline, before the text is there", "faint")
            y += LINE
        for number, row in enumerate(rows):
            top, kind = y + 42 + 32 * number, "client" if row["name"].startswith("blindformer") else "faint"
            drawing.text(10, top + 20, f"{PEERS[row['name']]} ({row['parties']})")
            ahead, whole = x(online[number]), x(online[number] + offline[number])
            drawing.bar(x(0), top, ahead - x(0), 26, kind)
            drawing.bar(ahead, top, whole - ahead, 26, kind, faint=True)
            drawing.text(whole + 6, top + 20, f"{online[number] + offline[number]:.{1 if unit == 1 else 0}f}", "faint")
        y += 50 + 32 * len(rows)
    return drawing.svg()


def cost_by_length() -> str:
    """Bytes of one text through MiniLM, online and offline together; both axes are logarithmic."""
    rows = kept("costs.json")[0]["rows"]
    drawing, lengths = Drawing("Megabytes of one text by its length", 380), sorted({row["length"] for row in rows})
    x, y = Scale(lengths[0], lengths[-1], 66, 375, log=True), Scale(5, 1000, 310, 50, log=True)
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
        end, down = "end" if kind == "server" else "start", -6 if label.endswith("2 layers") else 6
        drawing.text(x(cost) + (-10 if end == "end" else 10), y(right) + down, label, kind, end)
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
        drawing.line([(90, top - 7), (115, top - 7)], kind, 3)
        drawing.text(123, top, f"{row['name']}: {100 * row['accuracy']:.1f} %", kind)
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
