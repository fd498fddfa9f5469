"""For all tests: no network, one thread (the machine may have two cores, and parties are processes of their own)."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import gc
import io
import json
import os
import shutil
import signal
import sys
import tempfile
from collections import Counter
from functools import partial
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"  # of processes that tests start
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if shutil.which("nvidia-smi") is None:
    os.environ["TRITON_INTERPRET"] = "1"  # kernels for GPUs run on the processor; Triton reads it at its import
os.environ["BLINDFORMER_PROGRESS"] = "off"  # a busy machine must not add lines to what commands print
if "PYTEST_XDIST_WORKER" not in os.environ:  # what tests compile and download is not left in the user's cache
    os.environ["HOME"] = tempfile.mkdtemp(prefix="blindformer-home-")
    atexit.register(shutil.rmtree, os.environ["HOME"], ignore_errors=True)
    os.environ["BLINDFORMER_TEST_RUN"] = os.environ["HOME"]  # where `once` keeps what tests share; HOME may change

import blindformer  # noqa: F401  # before torch: it holds torch to the level that the environment names
import pytest
import torch
from blindformer.cores import keep_freed_memory
from blindformer.parties.launch.fork_server import shared
from blindformer.tests.shared.tiny import SMALL, WORDS, save_tokenizer, tiny_config
from hypothesis import HealthCheck, settings

# A run of the suite is repeatable; `make fuzz` draws new examples, and more of them.
# Machines may be slow; and what a fixture gives is made anew for each test, not for each example.
checks = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]}
settings.register_profile("repeatable", derandomize=True, max_examples=30, **checks)
settings.register_profile("fuzz", **checks)
settings.load_profile("repeatable")

torch.set_num_threads(1)
keep_freed_memory()
gc.set_threshold(100_000, 50, 100)  # libraries leave a million objects, which every full collection walks through


SECONDS = Path(__file__).with_name("seconds.json")  # that files of tests take
# Slow by nature, as tests that are marked so: campaigns, trainings, deployments, copies of the package, walks along
# documents, a browser, real weights. `make check` runs them, `make test` all others.
SLOW = (
    "approximations/test_kinds.py",
    "bench/",
    "federated/test_command.py",
    "federated/test_deploy.py",
    "federated/test_texts.py",
    "models/artifacts/test_leaks.py::test_the_search_finds",
    "models/delegated/test_folder.py::test_a_large_model",
    "models/distillation/test_budget.py",
    "models/distillation/test_checkpoints.py",
    "models/distillation/test_compact.py",
    "models/distillation/test_distil.py",
    "models/distillation/test_embeddings.py",
    "models/distillation/test_images.py",
    "models/distillation/test_narrowing.py",
    "models/generation/test_cross.py::test_a_pass_over_a_source",
    "models/generation/test_cross.py::test_each_length_of_a_source",
    "models/judging/test_search.py",
    "models/loading/test_students.py::test_a_packaged_student",
    "models/loading/test_students.py::test_packaged_students",
    "models/test_configurations.py",
    "parties/cli/test_chat.py::test_chat_outlives_a_server_that_is_away",
    "parties/cli/test_distill.py",
    "parties/cli/test_next.py",
    "parties/cli/test_written.py::test_recordings_are_written_down_by_services_elsewhere",
    "parties/client/test_client.py::test_parties_here_end_with_the_process_that_started_them",
    "parties/client/test_talk_faults.py",
    "parties/gateway/test_page.py",
    "parties/service/encrypted/test_digits.py",
    "parties/session/store/test_agree.py::test_two_replicas_of_one_store_use_nothing_twice",
    "parties/session/test_tensors.py",
    "parties/test_adapters.py::test_a_model_that_writes",
    "parties/test_adapters.py::test_two_voices",
    "parties/test_hostile_service.py",
    "parties/test_registry.py::test_a_new_protocol",
    "protocols/test_fused.py",
    "protocols/test_new_operation.py",
    "test_architecture.py::test_what_stands_still",
    "test_contributing.py",
    "test_dependencies.py",
    "test_docs.py::test_commands_print_what_the_pages_show",
    "test_docs.py::test_python_in_the_readme_runs",
    "test_docs.py::test_python_of_the_chat_page_runs",
    "test_docs.py::test_python_of_the_guides_runs",
    "test_docs.py::test_the_guide_from_mails",
    "test_docs.py::test_the_pipeline_of_the_models_page",
    "test_sentences.py",
    "test_site.py",
    "test_wheel.py",
)


def pytest_addoption(parser):
    parser.addoption("--record-seconds", action="store_true", help=f"write the seconds of each file to {SECONDS.name}")


def pytest_ignore_collect(collection_path, config):
    """`make test` need not import what it does not run: files that are slow as a whole, and what they import."""
    name = collection_path.as_posix().rpartition("/tests/")[2]
    if config.option.markexpr == "not slow" and name.startswith(SLOW):
        return True
    return None


def pytest_collection_modifyitems(items):
    """Files that take longest come first: none of these is left to one worker at the end."""
    seconds = json.loads(SECONDS.read_text())
    for item in items:
        if item.nodeid.removeprefix("tests/").startswith(SLOW):
            item.add_marker(pytest.mark.slow)
    slow = {item.path for item in items if item.get_closest_marker("slow")}

    def expected(item) -> float:
        return seconds.get(item.path.as_posix().rpartition("/tests/")[2], 20.0 if item.path in slow else 1.0)

    items.sort(key=expected, reverse=True)
    for item in items:
        if item.path in slow:
            item.add_marker(pytest.mark.timeout(2 * float(item.config.getini("timeout") or 0)))


def pytest_terminal_summary(terminalreporter, config):
    if not config.getoption("--record-seconds"):
        return
    seconds = Counter()
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport):
                seconds[report.nodeid.partition("::")[0].removeprefix("tests/")] += report.duration
    rows = {name: round(spent) for name, spent in seconds.most_common() if spent >= 1.5}
    SECONDS.write_text(json.dumps(rows, indent=0) + "\n")


@pytest.fixture(scope="session", autouse=True)
def forks():
    """One for all tests: else each that starts parties of this machine imports torch again."""
    return shared()


@pytest.fixture(scope="module", autouse=True)
def trimmed():
    """What a file's tests have freed goes back to the machine, which others of them need; and SIGTERM to its handler,
    which Ray replaces."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)
    with contextlib.suppress(OSError, AttributeError):  # glibc has it
        ctypes.CDLL(None).malloc_trim(0)


VISION = {"image_size": 16, "patch_size": 4}
PICTURED = {0: "cat", 1: "dog", 2: "ship"}


@pytest.fixture(scope="session")
def tiny_classifier(tmp_path_factory):
    """The folder of a small BERT classifier with random weights, as save_pretrained writes it."""
    from transformers import BertForSequenceClassification

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("tiny-classifier")
    config = tiny_config(num_labels=3, id2label={0: "calm", 1: "glad", 2: "cross"})
    BertForSequenceClassification(config).save_pretrained(folder)
    save_tokenizer(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory):
    """The folder of a small sentence encoder with mean pooling."""
    from transformers import BertModel

    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("tiny-encoder")
    BertModel(tiny_config(), add_pooling_layer=False).save_pretrained(folder)
    save_tokenizer(folder)
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    return folder


@pytest.fixture(scope="session")
def tiny_features(tmp_path_factory):
    """The folder of a small BERT without a head: its answer is its hidden states."""
    from transformers import BertModel

    torch.manual_seed(5)
    folder = tmp_path_factory.mktemp("tiny-features")
    BertModel(tiny_config()).save_pretrained(folder)
    save_tokenizer(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_causal(tmp_path_factory):
    """The folder of a small GPT-2."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(2)
    folder = tmp_path_factory.mktemp("tiny-causal")
    words = len(WORDS.split())
    config = GPT2Config(
        vocab_size=words, n_positions=64, n_embd=32, n_layer=1, n_head=2, bos_token_id=2, eos_token_id=3
    )
    GPT2LMHeadModel(config).save_pretrained(folder)
    save_tokenizer(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_vision(tmp_path_factory):
    """The folder of a small ViT classifier of 16 x 16 images."""
    pytest.importorskip("PIL")
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil

    torch.manual_seed(3)
    folder = tmp_path_factory.mktemp("tiny-vision")
    config = ViTConfig(**VISION, **SMALL, initializer_range=0.2, id2label=PICTURED)
    ViTForImageClassification(config).save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """A folder of eight PNG files of coloured noise, none of the model's size."""
    image = pytest.importorskip("PIL.Image")
    folder = tmp_path_factory.mktemp("pictures")
    generator = torch.Generator().manual_seed(4)
    for number in range(8):
        pixels = torch.randint(0, 256, (6 + number, 9, 3), generator=generator, dtype=torch.uint8)
        image.fromarray(pixels.numpy()).resize((40, 30)).save(folder / f"{number}.png")
    return folder


def _clip(folder, which: str) -> None:
    from transformers import (
        CLIPTextConfig,
        CLIPTextModelWithProjection,
        CLIPVisionConfig,
        CLIPVisionModelWithProjection,
        ViTImageProcessorPil,
    )

    if which == "clip-text":
        words = len(WORDS.split())
        config = CLIPTextConfig(
            **SMALL, projection_dim=8, vocab_size=words, max_position_embeddings=64, eos_token_id=3, pad_token_id=0
        )
        CLIPTextModelWithProjection(config).save_pretrained(folder)
        save_tokenizer(folder)
        return
    CLIPVisionModelWithProjection(CLIPVisionConfig(**SMALL, **VISION, projection_dim=8)).save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(folder)


def _deit(folder) -> None:
    from transformers import DeiTConfig, DeiTForImageClassificationWithTeacher, ViTImageProcessorPil

    config = DeiTConfig(**VISION, **SMALL, initializer_range=0.2, id2label=PICTURED)
    model = DeiTForImageClassificationWithTeacher(config)
    for token in model.deit.embeddings.parameters(recurse=False):
        torch.nn.init.normal_(token)  # zeros, as they begin, have no variance
    model.save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(folder)


@pytest.fixture(scope="session")
def tiny_heads(tmp_path_factory):
    """Folders of small models with heads of their own, by name, each made when it is first asked for."""
    import transformers

    bert = {
        "tokens": ("BertForTokenClassification", {"id2label": {0: "O", 1: "B-THING", 2: "I-THING"}}),
        "span": ("BertForQuestionAnswering", {}),
        "masked": ("BertForMaskedLM", {}),
        "pretrained": ("BertForPreTraining", {}),
    }
    folders = {}

    def folder_of(name: str):
        if name not in folders:
            torch.manual_seed(6)
            folders[name] = tmp_path_factory.mktemp(f"tiny-{name}")
            if name in bert:
                cls, changes = bert[name]
                getattr(transformers, cls)(tiny_config(**changes, initializer_range=0.3)).save_pretrained(folders[name])
                save_tokenizer(folders[name])
            elif name == "deit":
                _deit(folders[name])
            else:
                _clip(folders[name], name)
        return folders[name]

    return folder_of


@pytest.fixture
def call(monkeypatch, capsys):
    """`call(*arguments, stdin=b"")` gives (exit code, stdout, stderr) of the command line; stdin is no terminal."""
    from blindformer.parties.cli import main
    from blindformer.tests.levels import without_note

    def run(*arguments, stdin: bytes = b"") -> tuple[int, str, str]:
        before = signal.getsignal(signal.SIGTERM)  # some commands take it
        monkeypatch.setattr(sys, "argv", ["blindformer", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        try:
            with pytest.raises(SystemExit) as ended:
                main()
        finally:
            signal.signal(signal.SIGTERM, before)
        code, (printed, errors) = ended.value.code, capsys.readouterr()
        return (code if isinstance(code, int) else 0), printed, without_note(errors)

    return run


@pytest.fixture
def report_of(call):
    """`report_of(*arguments)`: what a command prints with `--format json`, which ends in order."""

    def run(*arguments, **options) -> dict:
        code, printed, errors = call(*arguments, "--format", "json", **options)
        assert code == 0, errors
        return json.loads(printed)

    return run


@pytest.fixture
def refused(call):
    """`refused(*arguments)`: the line on stderr of a command that ends with 1 and prints nothing else."""

    def run(*arguments) -> str:
        code, printed, errors = call(*arguments)
        assert (code, printed, errors.count("\n")) == (1, "", 1), errors
        return errors

    return run


@pytest.fixture(scope="session")
def contributed(tmp_path_factory):
    """A copy of the package with every file that CONTRIBUTING.md shows."""
    from blindformer.tests.contributing import copy_with_snippets

    return copy_with_snippets(tmp_path_factory.mktemp("contributed"))


@pytest.fixture
def parse(monkeypatch):
    """`parse(command)` fails if a command, as the pages show it, would not be accepted. Nothing is run."""
    import importlib
    import shlex

    from blindformer.tests.pages import command_line, leaves

    def unless_path(passes, text):  # the reader's own folders are not here
        return text if text.startswith(("./", "runs/")) else passes(text)

    root, called = command_line(), []
    for leaf in leaves(root).values():
        leaf.callback = lambda **given: called.append(given)
        leaf.checks = {name: [partial(unless_path, one) for one in checks] for name, checks in leaf.checks.items()}

    def check(command: str) -> None:
        name, *arguments = shlex.split(command)
        if name == "blindformer":
            root(arguments, standalone_mode=False)
            assert called, command
            called.clear()
            return
        assert (name, arguments[0]) == ("python", "-m"), command
        module = importlib.import_module(f"blindformer.{arguments[1]}")
        monkeypatch.setattr(module, "carry_out", lambda options, words, *rest, **more: options.parse_args(words))
        assert module.main(arguments[2:])

    return check
