"""Seconds, bytes, rounds and error of the tokens that a language model answers with, behind a cache of text.

    python -m bench.generation --model smollm2 --cache 128 --tokens 32 --format json
    python -m bench.generation --model smollm2 --cache 32 --tokens 4 --rtt 20 --bandwidth 200
    python -m bench.generation --model smollm2 --prompts 20 --tokens 64 --protocol clear
    python -m bench.generation --model smollm2 --prompts 20 --quotes --drafts 7 --protocol clear

README.md says what each figure means.
"""

# pyright: reportMissingImports=false
# (the editable install maps `blindformer` to this folder by an import hook, which pyright does not follow)

import argparse
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from blindformer.models.generation.chat import SLOTS
from blindformer.models.generation.conversation import Completion, Conversation
from blindformer.models.generation.decoder import GenerationError
from blindformer.models.generation.folder import found_or_compiled
from blindformer.models.judging.perplexity import compared
from blindformer.models.loading.load import load
from blindformer.models.program.pricing import Network
from blindformer.parties.cli.generate import Spent
from blindformer.parties.config import load_settings
from blindformer.parties.launch.processes import LocalServices
from blindformer.parties.registry import DEFAULT, find, resolve, talking
from blindformer.parties.service.local_options import LocalOptions
from blindformer.parties.session.online import peak_rss_mb
from blindformer.tests.shared.site import conversation_with
from rich.table import Table
from torch import Tensor

from .commands import PLANS, Say, apart, megabytes, publish, run_command, seconds
from .provenance import Measured, provenance
from .text import CALIBRATION, PROMPTS, QUERIES
from .workloads import transformers_quietly

GPT2 = "gpt2"


@dataclass(frozen=True, slots=True)
class Generation(Measured):
    """One measurement: greedy tokens after `cache` tokens of text. README.md explains each figure."""

    model: str
    weights: str
    plan: str
    protocol: str
    slots: int
    prefix: int
    cache: int
    drafts: int
    text: str
    tokens: list[int]
    prompt_tokens: int
    prefill_s: float
    online_s_per_token: float
    offline_s_per_token: float
    online_bytes_per_token: float
    offline_bytes_per_token: float
    rounds_per_token: float
    wall_s_per_token: float
    plaintext_s_per_token: float
    passes: int
    drafts_accepted: int
    positions: int
    agree_top1: float
    kl: float
    peak_rss_mb: float
    rtt_s: float | None
    bandwidth: float | None
    tls: bool
    threads: int


class Told:
    """What each pass took, and the most memory that a party ever held."""

    def __init__(self) -> None:
        self.spent, self.memory = Spent(), 0.0

    def __call__(self, part: str, answer: Any) -> None:
        self.spent.on_pass(part, answer)
        others = (value for name, value in answer.others.items() if name.endswith("peak_rss_mb"))
        self.memory = max(self.memory, *others)


def measure(
    model: str, *, cache: int = 128, tokens: int = 32, plan: str = "faithful", protocol: str = DEFAULT,
    drafts: int = 0, network: Network | None = None, timeout: float = 600, say: Say | None = None,
) -> Generation:  # fmt: skip
    """Compile the model unless it is in the user's cache, fill a conversation, measure, and compare with torch.

    network   to imitate between the parties (default: this machine's own loopback)
    timeout   seconds that any party may be silent

    Errors: BlindformerError, one line.
    """
    say = say or (lambda stage: None)
    torch.set_num_threads(1)
    slots = max(SLOTS, -(-(cache + tokens) // 32) * 32)
    about, (source, folder) = provenance(), _compiled(model, plan, slots, say)
    meter = Told()
    with _talking(folder, meter, protocol, network, timeout) as talk:
        ids = _text(talk, cache)
        revealed = _kept(talk)
        say(f"private: {cache} tokens of text")
        started = time.perf_counter()
        talk.rows.read(ids[talk.rows.prefix : -1])
        prefill = time.perf_counter() - started
        meter.spent.passes.clear()
        say(f"private: {tokens} tokens")
        options: dict[str, Any] = {"min_new_tokens": tokens, "prompt_lookup_num_tokens": drafts or None}
        reply = talk.answer(ids, max_new_tokens=tokens, do_sample=False, **options)
        memory, prefix, head = max(meter.memory, peak_rss_mb()), talk.rows.prefix, talk.decoder.head
    say("compare")
    whole = [*ids, *reply.tokens]
    wanted, plaintext = _in_the_clear(source, whole, len(ids))
    outputs = torch.stack([revealed[place] for place in range(prefix, len(whole) - 1)])
    logits = outputs if head is None else outputs @ head.T
    agree, divergence = (value.double().mean().item() for value in compared(logits, wanted[prefix:-1]))
    return Generation(
        model=model,
        weights=_weights(model),
        plan=plan,
        protocol=protocol,
        slots=slots,
        prefix=prefix,
        cache=cache,
        drafts=drafts,
        text=reply.text,
        tokens=reply.tokens,
        prompt_tokens=reply.prompt_tokens,
        prefill_s=prefill,
        **meter.spent.per_token(len(reply.tokens) + 1, 0),
        wall_s_per_token=reply.seconds / len(reply.tokens),
        plaintext_s_per_token=plaintext,
        passes=reply.passes,
        drafts_accepted=reply.drafts_accepted,
        positions=len(outputs),
        agree_top1=agree,
        kl=divergence,
        peak_rss_mb=memory,
        rtt_s=network and network.rtt,
        bandwidth=network and network.bandwidth,
        tls=protocol == DEFAULT,
        threads=1,
        **about,
    )


@contextmanager
def _talking(
    folder: Path, meter: Told, protocol: str, network: Network | None, timeout: float
) -> Iterator[Conversation]:
    """With parties of this machine."""
    if network is None:
        with resolve(find(protocol).talks)(folder, meter, server="local", timeout=timeout) as talk:
            yield talk
        return
    if protocol != DEFAULT:
        raise GenerationError(f"--rtt and --bandwidth: are for protocol {DEFAULT}, whose parties have a network")
    options = LocalOptions(network=(network.name, network.rtt, network.bandwidth))
    with closing(LocalServices(folder, timeout, options=options)) as services:
        where = services.addresses["server"], services.addresses["dealer"], services.certificates
        with conversation_with(folder, *where, timeout, meter, shaped=options.shaped) as talk:
            yield talk


@dataclass(frozen=True, slots=True)
class Greedy(Measured):
    """Answers to short messages, the likeliest token at each place. README.md explains each figure."""

    model: str
    weights: str
    plan: str
    protocol: str
    prompts: int
    quotes: bool
    drafts: int
    tokens: int
    passes: int
    drafts_accepted: int
    answers: list[str]
    positions: int
    agree_top1: float
    same_answers: int
    kl: float
    wall_s_per_token: float
    drafts_speed: float | None


def answer(
    model: str, *, prompts: int = 20, quotes: bool = False, tokens: int = 64, plan: str = "faithful",
    protocol: str = DEFAULT, drafts: int = 0, timeout: float = 600, say: Say | None = None,
) -> Greedy:  # fmt: skip
    """Answer messages of ours with at most `tokens` tokens each, and compare each token with torch's at its place.

    quotes   ask for what the message itself says
    drafts   tokens to guess; each message is answered without them, too, in turns before and after

    Errors: BlindformerError, one line.
    """
    say = say or (lambda stage: None)
    torch.set_num_threads(1)
    about, (source, folder) = provenance(), _compiled(model, plan, SLOTS, say)
    judged, replies, plain = list[tuple[Tensor, Tensor]](), list[Completion](), list[Completion]()
    messages = [f"Repeat this sentence: {text}" for text in (*QUERIES, *CALIBRATION)] if quotes else PROMPTS
    exact: Any = getattr(load(source).model, "model")  # noqa: B009 (a causal model, in a head of ours)
    with _talking(folder, Told(), protocol, None, timeout) as talk, torch.inference_mode():
        revealed, head = _kept(talk), talk.decoder.head
        for number, prompt in enumerate(messages[:prompts], 1):
            say(f"answer {number} of {min(prompts, len(messages))}")
            asked = [{"role": "user", "content": prompt}]
            ids = talk.chat.prompt(asked) if talk.chat.tokenizer.chat_template else talk.chat.text(prompt)
            for count in ([None, drafts] if number % 2 else [drafts, None]) if drafts else [None]:
                reply = talk.answer(ids, max_new_tokens=tokens, do_sample=False, prompt_lookup_num_tokens=count)
                (replies if count or not drafts else plain).append(reply)
            whole = [*ids, *replies[-1].tokens]
            outputs = torch.stack([revealed[place] for place in range(len(ids) - 1, len(whole) - 1)])
            wanted = exact(input_ids=torch.tensor([whole])).logits[0, len(ids) - 1 : -1]
            judged.append(compared(outputs if head is None else outputs @ head.T, wanted))
    agree, divergence = (torch.cat(values).double() for values in zip(*judged, strict=True))
    return Greedy(
        model=model,
        weights=_weights(model),
        plan=plan,
        protocol=protocol,
        prompts=len(replies),
        quotes=quotes,
        drafts=drafts,
        tokens=tokens,
        passes=sum(reply.passes - reply.prompt_passes for reply in replies),
        drafts_accepted=sum(reply.drafts_accepted for reply in replies),
        answers=[reply.text for reply in replies],
        positions=len(agree),
        agree_top1=agree.mean().item(),
        same_answers=sum(bool(alike.all()) for alike, _ in judged),
        kl=divergence.mean().item(),
        wall_s_per_token=_after_question(replies),
        drafts_speed=_after_question(plain) / _after_question(replies) if drafts else None,
        **about,
    )


def _after_question(replies: list[Completion]) -> float:
    """Seconds for each token after the first of its answer."""
    return sum(r.seconds - r.prefill_s for r in replies) / max(1, sum(len(r.tokens) - 1 for r in replies))


def _compiled(model: str, plan: str, slots: int, say: Say) -> tuple[str | Path, Path]:
    """The model's own folder or name, and the one it is compiled in."""
    say("compile, unless it is in the cache: some minutes")
    home = load_settings(None).client.cache.expanduser()
    source = _seeded_gpt2(home / "bench" / GPT2) if model == GPT2 else model
    return source, apart(found_or_compiled, source, home, plan=plan, slots=slots)


def _weights(model: str) -> str:
    return "seeded" if model == GPT2 else "real"


def _text(talk: Conversation, count: int) -> list[int]:
    """The prefix, and so many tokens of text."""
    words: list[int] = []
    while len(words) < count:
        words += talk.chat.text(" ".join(QUERIES))[talk.rows.prefix :]
    return [*talk.chat.prefix, *words[:count]]


def _kept(talk: Conversation) -> dict[int, Tensor]:
    """What the model reveals at each place of the text, as it is read; of a place that is read again, the last."""
    read, revealed = talk.rows.read, dict[int, Tensor]()

    def reading(ids: Sequence[int], wanted: int | None = None) -> Tensor:
        start, outputs = len(talk.rows.ids), read(ids)
        revealed.update(enumerate(outputs, start))
        return outputs[len(outputs) - (len(outputs) if wanted is None else wanted) :]

    talk.rows.read = reading
    return revealed


def _in_the_clear(source: str | Path, ids: list[int], prompt: int) -> tuple[Tensor, float]:
    """Logits of the float32 model [tokens, words], and its seconds a token behind the same text, with its own cache."""
    model: Any = getattr(load(source).model, "model")  # noqa: B009 (a causal model, in a head of ours)
    text, taken = torch.tensor([ids]), []
    with torch.inference_mode():
        logits = model(input_ids=text).logits[0]
        for count in (1, 1, len(ids) - prompt + 1):  # the first to warm up
            options = {"max_new_tokens": count, "min_new_tokens": count, "do_sample": False, "pad_token_id": 0}
            started = time.perf_counter()
            model.generate(text[:, :prompt], **options)
            taken.append(time.perf_counter() - started)
    return logits, (taken[2] - taken[1]) / (len(ids) - prompt)


def _seeded_gpt2(folder: Path) -> Path:
    """GPT-2's shape with weights from seed 0, and a token for each byte of a text. Written once."""
    if not (folder / "tokenizer.json").is_file():
        transformers = transformers_quietly()
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers

        torch.manual_seed(0)
        transformers.GPT2LMHeadModel(transformers.GPT2Config()).save_pretrained(folder)
        words = ["<|endoftext|>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
        inner = Tokenizer(models.BPE(vocab={word: number for number, word in enumerate(words)}, merges=[]))
        inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
        transformers.PreTrainedTokenizerFast(tokenizer_object=inner, bos_token=words[0]).save_pretrained(folder)
    return folder


def table(report: Generation) -> Table:
    title = f"{report.model}, {report.cache} tokens of text, plan {report.plan}, protocol {report.protocol}"
    if report.rtt_s is not None and report.bandwidth is not None:
        title += f", on {report.rtt_s * 1e3:g} ms, {report.bandwidth / 1e6:g} Mbit/s"
    rows = {
        "a token, in the clear": seconds(report.plaintext_s_per_token),
        "a token, online": seconds(report.online_s_per_token),
        "a token, offline": seconds(report.offline_s_per_token),
        "a token, waited for": seconds(report.wall_s_per_token),
        "online traffic": megabytes(report.online_bytes_per_token),
        "offline traffic": megabytes(report.offline_bytes_per_token),
        "rounds": f"{report.rounds_per_token:.0f}",
        "the text": seconds(report.prefill_s),
        "passes": f"{report.passes} for {len(report.tokens)} tokens, {report.drafts_accepted} from drafts",
        "likeliest token as float32": f"{report.agree_top1:.3f} of {report.positions} places",
        "KL from float32": f"{report.kl:.2e}",
        "memory, largest party": f"{report.peak_rss_mb:.0f} MB",
    }
    return _grid(title, rows)


def greedy_table(report: Greedy) -> Table:
    rows = {
        "messages": f"{report.prompts}, answered with at most {report.tokens} tokens each",
        "passes": f"{report.passes} for {report.positions} tokens, {report.drafts_accepted} from drafts",
        "likeliest token as float32": f"{report.agree_top1:.4f} of {report.positions} places",
        "answers that are float32's own": f"{report.same_answers}",
        "KL from float32": f"{report.kl:.2e}",
        "a token, waited for": seconds(report.wall_s_per_token),
    }
    if report.drafts:
        rows["beside the same without drafts"] = f"{report.drafts_speed:.2f} times as fast"
    return _grid(f"{report.model}, plan {report.plan}, protocol {report.protocol}", rows)


def _grid(title: str, rows: dict[str, str]) -> Table:
    grid = Table(title=title, show_header=False)
    for row in rows.items():
        grid.add_row(*row)
    return grid


def main(arguments: list[str] | None = None) -> int:
    options = argparse.ArgumentParser(prog="python -m bench.generation", description="Measure private generation.")
    options.add_argument("--model", default="smollm2", help="smollm2, gpt2 (seeded weights) or a folder (%(default)s)")
    options.add_argument("--cache", type=int, default=128, help="tokens of text before the answer (%(default)s)")
    options.add_argument("--tokens", type=int, default=32, help="tokens of the answer (%(default)s)")
    prompts = f"short messages to answer instead, at most {len(PROMPTS)}: how often the likeliest token is float32's"
    options.add_argument("--prompts", type=int, help=prompts)
    options.add_argument("--quotes", action="store_true", help="with --prompts: messages that ask to be repeated")
    options.add_argument("--drafts", type=int, default=0, help="tokens to guess and check in one pass (%(default)s)")
    options.add_argument("--plan", choices=PLANS, default="faithful")
    options.add_argument("--protocol", choices=talking(), default=DEFAULT)
    options.add_argument("--rtt", type=float, help="milliseconds there and back, of a network to imitate")
    options.add_argument("--bandwidth", type=float, help="Mbit/s each way, with --rtt")
    options.add_argument("--timeout", type=float, default=600, help="seconds of silence allowed (%(default)s)")
    options.add_argument("--format", choices=["table", "json"], default="table")
    chosen = options.parse_args(arguments)

    def work(say: Say) -> None:
        if chosen.cache < 2 or chosen.tokens < 1:
            raise GenerationError("--cache and --tokens: give at least 2 and 1")
        if (chosen.rtt is None) != (chosen.bandwidth is None):
            raise GenerationError("--rtt and --bandwidth: give both, or none")
        network = None if chosen.rtt is None else Network("as given", chosen.rtt / 1e3, chosen.bandwidth * 1e6)
        if chosen.prompts is not None and not 0 < chosen.prompts <= len(PROMPTS):
            raise GenerationError(f"--prompts: give 1 to {len(PROMPTS)}")
        if chosen.prompts is not None and network is not None:
            raise GenerationError("--rtt and --bandwidth: change no token; leave them or --prompts out")
        left_out = ("format", "model", "rtt", "bandwidth", *(("cache",) if chosen.prompts else ("prompts", "quotes")))
        given = {name: value for name, value in vars(chosen).items() if name not in left_out}
        if chosen.prompts is None:
            publish(measure(chosen.model, **given, network=network, say=say), chosen.format, table)
        else:
            publish(answer(chosen.model, **given, say=say), chosen.format, greedy_table)

    return run_command("bench.generation", work)


if __name__ == "__main__":
    raise SystemExit(main())
