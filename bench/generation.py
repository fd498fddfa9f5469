"""Seconds, bytes, rounds and error of the tokens that a language model answers with, behind a cache of text.

    python -m bench.generation --model smollm2 --cache 128 --tokens 32 --format json
    python -m bench.generation --model smollm2 --cache 32 --tokens 4 --rtt 20 --bandwidth 200
    python -m bench.generation --model smollm2 --prompts 20 --tokens 64 --protocol clear
    python -m bench.generation --model smollm2 --prompts 20 --quotes --drafts 7 --protocol clear

README.md says what each figure means.
"""

import argparse
import json
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any

import psutil
import torch
from blindformer.models.delegated.building import found_or_delegated
from blindformer.models.delegated.rows import DelegatedRows
from blindformer.models.generation.chat import SLOTS, Chat
from blindformer.models.generation.conversation import Completion, Conversation
from blindformer.models.generation.folder import found_or_compiled
from blindformer.models.judging.perplexity import compared
from blindformer.models.loading.load import load
from blindformer.models.loading.stored import stored_type
from blindformer.models.program.pricing import Network
from blindformer.parties.cli.chat import Spent
from blindformer.parties.client.client import open_here
from blindformer.parties.client.local import find_local
from blindformer.parties.config import load_settings
from blindformer.parties.launch import LocalOptions
from blindformer.parties.launch.processes import LocalServices
from blindformer.parties.registry import DEFAULT, find, protocol_for, talking
from blindformer.parties.session.online import peak_rss_mb
from blindformer.protocols.delegated.arithmetic import signed_in
from blindformer.protocols.delegated.group import MaskedRows
from blindformer.tests.shared.site import conversation_with
from rich.table import Table
from safetensors.torch import load_file, save_file
from torch import Tensor

from .harness import (
    PLANS,
    BenchError,
    Report,
    Say,
    add_network,
    add_weights,
    apart,
    carry_out,
    grid,
    megabytes,
    network_of,
    parser,
    seconds,
)
from .text import CALIBRATION, PROMPTS, QUERIES
from .workloads import transformers_quietly

NETWORKED = (DEFAULT, "delegated")
Shape = tuple[str, str, dict[str, Any]]


def _llama(hidden: int, layers: int, heads: int, key_heads: int, feed_forward: int, words: int, **more: Any) -> Shape:
    sizes = {"hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads}
    sizes |= {"num_key_value_heads": key_heads, "intermediate_size": feed_forward, "vocab_size": words}
    return "LlamaForCausalLM", "LlamaConfig", sizes | more


# Shapes whose weights are from seed 0: transformers' class of the model, its configuration's, and what differs from it.
SEEDED: dict[str, Shape] = {
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", {}),
    "llama-0.5b": _llama(896, 24, 14, 2, 4864, 151936, tie_word_embeddings=True),
    "llama-1b": _llama(2048, 16, 32, 8, 8192, 128256, tie_word_embeddings=True),  # Llama 3.2
    "llama-8b": _llama(4096, 32, 32, 8, 14336, 128256),  # Llama 3
}
IN_MEMORY = 0.5  # of this machine's, that a model may take in float32 to be compared with
EXACT_GROUPS, EXACT_ROWS = 4, 4  # of a delegated model: the layers of a first block, and rows of the text


class PassMeter:
    """What each pass took, and the most memory that a party ever held."""

    def __init__(self) -> None:
        self.spent, self.memory = Spent(), 0.0

    def __call__(self, part: str, answer: Any) -> None:
        self.spent.on_pass(part, answer)
        others = (value for name, value in answer.others.items() if name.endswith("peak_rss_mb"))
        self.memory = max([self.memory, *others])


def measure(chosen: argparse.Namespace, say: Say) -> Report:
    """Compile the model unless it is in the user's cache, then measure. Errors: BlindformerError, one line."""
    network = network_of(chosen)
    if chosen.cache < 2 or chosen.tokens < 1:
        raise BenchError("--cache and --tokens: give at least 2 and 1")
    if chosen.prompts is not None and not 0 < chosen.prompts <= len(PROMPTS):
        raise BenchError(f"--prompts: give 1 to {len(PROMPTS)}")
    if chosen.prompts is not None and network is not None:
        raise BenchError("--rtt and --bandwidth: change no token; leave them or --prompts out")
    torch.set_num_threads(1)
    say("compile, unless it is in the cache: some minutes")
    home = load_settings(None).client.cache.expanduser()
    source = _seeded(chosen.model, home / "bench" / chosen.model) if chosen.model in SEEDED else chosen.model
    slots = SLOTS if chosen.prompts else max(SLOTS, -(-(chosen.cache + chosen.tokens) // 32) * 32)
    chosen.protocol = protocol_for(chosen.protocol, chosen.weights)
    if find(chosen.protocol).as_it_is:
        folder = apart(found_or_delegated, source, home, plan=chosen.plan)
    else:
        folder = apart(found_or_compiled, source, home, plan=chosen.plan, slots=slots, weights=chosen.weights)
    report = {name: getattr(chosen, name) for name in ("model", "plan", "protocol", "drafts")}
    report |= {"weights": "seeded" if chosen.model in SEEDED else "real", "weights_are": chosen.weights}
    if chosen.prompts:
        return report | answer_prompts(chosen, source, folder, say)
    return report | {"slots": slots} | answer_after_text(chosen, source, folder, network, say)


def answer_after_text(
    chosen: argparse.Namespace, source: str | Path, folder: Path, network: Network | None, say: Say
) -> Report:
    """Fill a conversation with `cache` tokens of text, take greedy tokens of an answer, and compare with torch."""
    meter, tokens = PassMeter(), chosen.tokens
    with _talking(folder, meter, chosen.protocol, network, chosen.timeout) as talk:
        ids = text_of(talk.chat, chosen.cache)
        revealed = _kept(talk)
        say(f"private: {chosen.cache} tokens of text")
        started = time.perf_counter()
        products = _products(talk.rows)
        talk.rows.read(ids[talk.rows.prefix : -1])
        prefill = time.perf_counter() - started
        meter.spent.passes.clear()
        say(f"private: {tokens} tokens")
        options: dict[str, Any] = {"min_new_tokens": tokens, "prompt_lookup_num_tokens": chosen.drafts or None}
        reply = talk.answer(ids, max_new_tokens=tokens, do_sample=False, **options)
        memory, prefix, head = max(meter.memory, peak_rss_mb()), talk.rows.prefix, talk.decoder.head
    say("compare")
    whole = [*ids, *reply.tokens]
    outputs = torch.stack([revealed[place] for place in range(prefix, len(whole) - 1)])
    logits, plaintext, agree, divergence = outputs if head is None else outputs @ head.T, None, None, None
    if _fits(source):
        wanted, plaintext = _in_the_clear(source, whole, len(ids))
        agree, divergence = (value.double().mean().item() for value in compared(logits, wanted[prefix:-1]))
    return {
        "groups_exact": [_is_exact(folder, group, *product) for group, product in sorted(products.items())],
        "prefix": prefix,
        "cache": chosen.cache,
        "text": reply.text,
        "tokens": reply.tokens,
        "prompt_tokens": reply.prompt_tokens,
        "prefill_s": prefill,
        **meter.spent.per_token(len(reply.tokens) + 1, 0),
        "wall_s_per_token": reply.seconds / len(reply.tokens),
        "plaintext_s_per_token": plaintext,
        "passes": reply.passes,
        "drafts_accepted": reply.drafts_accepted,
        "positions": len(outputs),
        "agree_top1": agree,
        "kl": divergence,
        "peak_rss_mb": memory,
        "rtt_s": network and network.rtt,
        "bandwidth": network and network.bandwidth,
        "tls": not find(chosen.protocol).reference,
        "threads": 1,
    }


@contextmanager
def _talking(
    folder: Path, meter: PassMeter, protocol: str, network: Network | None, timeout: float
) -> Iterator[Conversation]:
    """With parties of this machine."""
    if network is None:
        with open_here(find_local(protocol), folder, timeout=timeout) as client:
            yield client.conversation(meter)
        return
    if protocol not in NETWORKED:
        raise BenchError(f"--rtt and --bandwidth: are for protocols {' and '.join(NETWORKED)}, which have a dealer")
    options = LocalOptions(network=(network.name, network.rtt, network.bandwidth))
    with closing(LocalServices(folder, timeout, protocol, options=options)) as services:
        where = services.addresses["server"], services.addresses["dealer"], services.certificates
        with conversation_with(folder, *where, timeout, meter, shaped=options.shaped) as talk:
            yield talk


def answer_prompts(chosen: argparse.Namespace, source: str | Path, folder: Path, say: Say) -> Report:
    """Answer messages of ours with at most `tokens` tokens each, and compare each token with torch's at its place.

    With `quotes` they ask for what the message itself says; with `drafts` each is answered without them, too, in turns
    before and after.
    """
    drafts, replies, plain = chosen.drafts, list[Completion](), list[Completion]()
    judged: list[tuple[Tensor, Tensor]] = []
    quotes = [f"Repeat this sentence: {text}" for text in (*QUERIES, *CALIBRATION)]
    messages = (quotes if chosen.quotes else PROMPTS)[: chosen.prompts]
    exact: Any = getattr(load(source).model, "model")  # noqa: B009 (a causal model, in a head of ours)
    with _talking(folder, PassMeter(), chosen.protocol, None, chosen.timeout) as talk, torch.inference_mode():
        revealed, head = _kept(talk), talk.decoder.head
        for number, prompt in enumerate(messages, 1):
            say(f"answer {number} of {len(messages)}")
            asked = [{"role": "user", "content": prompt}]
            ids = talk.chat.prompt(asked) if talk.chat.tokenizer.chat_template else talk.chat.text(prompt)
            for count in ([None, drafts] if number % 2 else [drafts, None]) if drafts else [None]:
                reply = talk.answer(ids, max_new_tokens=chosen.tokens, do_sample=False, prompt_lookup_num_tokens=count)
                (replies if count or not drafts else plain).append(reply)
            whole = [*ids, *replies[-1].tokens]
            outputs = torch.stack([revealed[place] for place in range(len(ids) - 1, len(whole) - 1)])
            wanted = exact(input_ids=torch.tensor([whole])).logits[0, len(ids) - 1 : -1]
            judged.append(compared(outputs if head is None else outputs @ head.T, wanted))
    agree, divergence = (torch.cat(values).double() for values in zip(*judged, strict=True))
    return {
        "prompts": len(replies),
        "quotes": chosen.quotes,
        "tokens": chosen.tokens,
        "passes": sum(reply.passes - reply.prompt_passes for reply in replies),
        "drafts_accepted": sum(reply.drafts_accepted for reply in replies),
        "answers": [reply.text for reply in replies],
        "positions": len(agree),
        "agree_top1": agree.mean().item(),
        "same_answers": sum(bool(alike.all()) for alike, _ in judged),
        "kl": divergence.mean().item(),
        "wall_s_per_token": _after_question(replies),
        "drafts_speed": _after_question(plain) / _after_question(replies) if drafts else None,
    }


def _after_question(replies: list[Completion]) -> float:
    """Seconds for each token after the first of its answer."""
    return sum(r.seconds - r.prefill_s for r in replies) / max(1, sum(len(r.tokens) - 1 for r in replies))


def _products(rows: Any) -> dict[int, tuple[Tensor, Tensor]]:
    """Integers q and W q of the first groups of a delegated model, from its next pass, checked by its client."""
    seen: dict[int, tuple[Tensor, Tensor]] = {}

    def watch(number: int, group: Any) -> None:
        def opened(sent: MaskedRows, product: Tensor, s: Tensor, out: Tensor) -> bool:
            y = signed_in(product[:EXACT_ROWS] + s[:EXACT_ROWS], group.ring)
            seen[number] = sent.q[:EXACT_ROWS].clone(), y
            del group.open
            return group.open(sent, product, s, out)

        group.open = opened

    if isinstance(rows, DelegatedRows):
        rows._attempt(lambda carrier: [watch(*one) for one in enumerate(carrier.groups[:EXACT_GROUPS])])
    return seen


def _is_exact(folder: Path, group: int, q: Tensor, y: Tensor) -> bool:
    """Whether y [rows, outputs] is q [rows, inputs] times the group's integers. Sums below 2^53 are exact."""
    integers = load_file(folder / "server" / "integers" / f"{group}.safetensors")["integers"]
    exact = torch.cat([q.double() @ rows.double().T for rows in integers.split(1024)], 1)
    return torch.equal(exact, y.double())


def _fits(source: str | Path) -> bool:
    """Whether a model fits the memory in float32."""
    files = list(Path(source).glob("*.safetensors"))  # of a packaged model: none, and it is small
    times = 4 // (stored_type(Path(source)) or torch.float32).itemsize
    return times * sum(file.stat().st_size for file in files) < IN_MEMORY * psutil.virtual_memory().total


def text_of(chat: Chat, count: int) -> list[int]:
    """The prefix, and so many tokens of text."""
    words: list[int] = []
    while len(words) < count:
        words += chat.text(" ".join(QUERIES))[len(chat.prefix) :]
    return [*chat.prefix, *words[:count]]


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


def _seeded(shape: str, folder: Path) -> Path:
    """A shape with weights from seed 0 in bfloat16, a file for each layer, and a token for each byte of a text. Written
    once; in memory is one layer."""
    if not (folder / "tokenizer.json").is_file():
        transformers: Any = transformers_quietly()
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers

        model, config, differences = SEEDED[shape]
        settings = getattr(transformers, config)(architectures=[model], dtype="bfloat16", **differences)
        settings.save_pretrained(folder)
        with torch.device("meta"):
            named = dict(getattr(transformers, model)(settings).named_parameters())
        generator, files = torch.Generator().manual_seed(0), dict[str, str]()
        for layer, names in groupby(named, lambda name: re.sub(r"(\.\d+)\..*", r"\1", name)):
            file = f"model-{layer}.safetensors"
            tensors = {name: _drawn(name, named[name].shape, generator) for name in names}
            save_file(tensors, folder / file, {"format": "pt"})
            files |= dict.fromkeys(tensors, file)
        index = {"metadata": {"total_size": 2 * sum(map(torch.numel, named.values()))}, "weight_map": files}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        words = ["<|endoftext|>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
        inner = Tokenizer(models.BPE(vocab={word: number for number, word in enumerate(words)}, merges=[]))
        inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
        transformers.PreTrainedTokenizerFast(tokenizer_object=inner, bos_token=words[0]).save_pretrained(folder)
    return folder


def _drawn(name: str, shape: torch.Size, generator: torch.Generator) -> Tensor:
    """Ones for norms, zeros for biases, and normal numbers, as transformers begins."""
    if len(shape) < 2:
        return torch.full(shape, float(name.endswith("weight")), dtype=torch.bfloat16)
    return torch.randn(shape, generator=generator).mul_(0.02).bfloat16()


def show(report: Report) -> list[Table]:
    title = f"{report['model']}, plan {report['plan']}, protocol {report['protocol']}"
    drafts = f"{report['drafts_accepted']} from drafts"
    rows: dict[str, str] = {}
    if report["agree_top1"] is not None:
        rows["most likely token as float32"] = f"{report['agree_top1']:.4f} of {report['positions']} places"
        rows["KL from float32"] = f"{report['kl']:.2e}"
    rows["a token, waited for"] = seconds(report["wall_s_per_token"])
    if "prompts" in report:
        rows |= {
            "messages": f"{report['prompts']}, answered with at most {report['tokens']} tokens each",
            "passes": f"{report['passes']} for {report['positions']} tokens, {drafts}",
            "answers that are float32's own": f"{report['same_answers']}",
        }
        if report["drafts"]:
            rows["beside the same without drafts"] = f"{report['drafts_speed']:.2f} times as fast"
        return [grid(title, rows)]
    title += f", {report['cache']} tokens of text"
    if report["rtt_s"] is not None:
        title += f", on {report['rtt_s'] * 1e3:g} ms, {report['bandwidth'] / 1e6:g} Mbit/s"
    if report["groups_exact"]:
        rows["exact integers"] = f"{sum(report['groups_exact'])} of {len(report['groups_exact'])} groups of layers"
    if report["plaintext_s_per_token"] is not None:
        rows["a token, in the clear"] = seconds(report["plaintext_s_per_token"])
    rows |= {
        "a token, online": seconds(report["online_s_per_token"]),
        "a token, offline": seconds(report["offline_s_per_token"]),
        "online traffic": megabytes(report["online_bytes_per_token"]),
        "offline traffic": megabytes(report["offline_bytes_per_token"]),
        "rounds": f"{report['rounds_per_token']:.0f}",
        "the text": seconds(report["prefill_s"]),
        "passes": f"{report['passes']} for {len(report['tokens'])} tokens, {drafts}",
        "memory, largest party": f"{report['peak_rss_mb']:.0f} MB",
    }
    return [grid(title, rows)]


def main(arguments: list[str] | None = None) -> int:
    options = parser("generation", "Measure private generation.")
    models = f"smollm2, gemma3-270m, {', '.join(SEEDED)} (seeded weights) or a folder (%(default)s)"
    options.add_argument("--model", default="smollm2", help=models)
    options.add_argument("--cache", type=int, default=128, help="tokens of text before the answer (%(default)s)")
    options.add_argument("--tokens", type=int, default=32, help="tokens of the answer (%(default)s)")
    prompts = f"short messages to answer instead, at most {len(PROMPTS)}: how often the most likely token is float32's"
    options.add_argument("--prompts", type=int, help=prompts)
    options.add_argument("--quotes", action="store_true", help="with --prompts: messages that ask to be repeated")
    options.add_argument("--drafts", type=int, default=0, help="tokens to guess and check in one pass (%(default)s)")
    options.add_argument("--plan", choices=PLANS, default="faithful")
    options.add_argument("--protocol", choices=talking(), default=DEFAULT)
    add_network(options)
    add_weights(options)
    options.add_argument("--timeout", type=float, default=600, help="seconds of silence allowed (%(default)s)")
    return carry_out(options, arguments, measure, show)


if __name__ == "__main__":
    raise SystemExit(main())
