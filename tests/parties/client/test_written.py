"""Models that write about what they read: the answers of transformers' own `generate`, by each protocol's parties."""

import blindformer as bf
import numpy as np
import pytest
import torch
from blindformer.errors import BlindformerError
from blindformer.models.generation.decoder import GenerationError
from blindformer.models.generation.folder import compile_seq2seq_folder
from blindformer.models.loading.huggingface import LoadError
from blindformer.models.loading.load import load
from blindformer.tests.parties.service.helped import Helped
from blindformer.tests.shared.speech import tiny_whisper
from blindformer.tests.shared.tiny import tiny_marian
from transformers import GenerationMixin

TEXTS = ["hello there", "I lost it"]
NEW = 6


@pytest.fixture(scope="module")
def marian(tmp_path_factory):
    """(the model's folder, compiled for texts of 16 tokens)"""
    own = tiny_marian(tmp_path_factory.mktemp("marian"))
    out = tmp_path_factory.mktemp("compiled") / "marian"
    return own, compile_seq2seq_folder(own, out, lengths=[16], slots=32, sizes=(1,), calibration=TEXTS)


def own_answer(folder, text):
    loaded = load(folder)
    options = {"max_new_tokens": NEW, "num_beams": 1, "do_sample": False}
    tokens = loaded.model.generate(**loaded.encode(text, 16), **options)[0]
    return loaded.processor.decode(tokens, skip_special_tokens=True)


@pytest.mark.parametrize("protocol", ["clear", "beaver", "crypten"])
def test_a_translation_is_the_models_own(marian, protocol):
    own, folder = marian
    with bf.pipeline("translation", folder, protocol) as translate:
        answers = [translate(text, max_new_tokens=NEW) for text in TEXTS]
    assert answers == [[{"translation_text": own_answer(own, text)}] for text in TEXTS]


def test_lists_and_the_other_tasks_have_the_forms_of_transformers(marian):
    _, folder = marian
    with bf.pipeline("summarization", folder, "clear") as summarize:
        first, empty, long = summarize([TEXTS[0], "", "longer than sixteen bytes"], max_new_tokens=1)
        assert list(first) == ["summary_text"]
        assert "is empty" in str(empty)
        assert "has 25 tokens" in str(long)
        result = summarize.query(TEXTS[0])
        assert (result.length, result.tokens, len(result.value)) == (16, 11, 1)
    with pytest.raises(BlindformerError, match="answers translation, not fill-mask"):
        bf.pipeline("fill-mask", folder, "clear")


def test_a_recording_is_transcribed_as_by_the_model(tmp_path):
    folder = tiny_whisper(tmp_path / "whisper")
    recordings = [np.random.default_rng(seed).normal(0, 0.1, 8000).astype(np.float32) for seed in range(2)]
    how = {"slots": 32, "sizes": (1,)}
    with bf.pipeline(
        "automatic-speech-recognition", load(folder), "clear", calibration=recordings, generation=how
    ) as hear:
        answer = hear(recordings[0], language="de", max_new_tokens=NEW)
    loaded = load(folder)
    words = ("startoftranscript", "de", "transcribe", "notimestamps")
    prompt = loaded.processor.tokenizer.convert_tokens_to_ids([f"<|{word}|>" for word in words])
    options = {"max_new_tokens": NEW, "num_beams": 1, "do_sample": False, "decoder_input_ids": torch.tensor([prompt])}
    with torch.no_grad():
        tokens = GenerationMixin.generate(loaded.model, **loaded.encode_file(recordings[0]), **options)[0]
    assert answer == {"text": loaded.processor.tokenizer.decode(tokens, skip_special_tokens=True)}


def test_a_model_that_needs_the_scores_of_all_words_reveals_no_token_alone(tmp_path):
    own = load(tiny_marian(tmp_path / "marian"))
    own.model.generation_config.bad_words_ids = [[5]]
    with pytest.raises(GenerationError, match="its bad_words_ids needs the scores of all words; reveal them"):
        compile_seq2seq_folder(own, tmp_path / "out", reveal="token")


@pytest.mark.parametrize("tiny", [tiny_marian, tiny_whisper])
def test_a_model_that_writes_is_no_query_of_one_pass(tiny, tmp_path):
    own = load(tiny(tmp_path / "own"))
    with pytest.raises(LoadError, match="answers token by token: compile it with"):
        bf.compile_folder(own, tmp_path / "out")


def test_a_session_lost_behind_its_source_reads_the_source_again(marian):
    own, folder = marian
    ran: list[str] = []
    with bf.pipeline("translation", folder, "clear") as translate:
        assert translate(TEXTS[0], max_new_tokens=NEW)
        passes = translate._writer._passes
        rows, run = passes.conversation.rows, passes.conversation.rows.run

        def lose_behind_the_source(part, *given):
            ran.append(part)
            answer = run(part, *given)
            if ran == [rows.source]:
                passes._session.close()
            return answer

        rows.run = lose_behind_the_source
        answer = translate(TEXTS[1], max_new_tokens=NEW)
    assert ran.count(rows.source) == 2
    assert answer == [{"translation_text": own_answer(own, TEXTS[1])}]


def test_a_translation_may_be_asked_for_by_its_languages(tmp_path, marian):
    pairs = {"translation_en_to_de": {"prefix": "de: "}, "translation_en_to_fr": {"prefix": "fr: "}}
    several = tiny_marian(tmp_path / "several", task_specific_params=pairs)
    how = {"lengths": [16], "slots": 32, "sizes": (1,), "calibration": TEXTS}
    folder = compile_seq2seq_folder(several, tmp_path / "compiled", **how)
    with bf.pipeline("translation_en_to_fr", folder, "clear") as translate:
        answer = translate(TEXTS[1], max_new_tokens=NEW)
    assert answer == [{"translation_text": own_answer(several, f"fr: {TEXTS[1]}")}]
    for model in (folder, load(several)):
        with pytest.raises(BlindformerError, match="no task translation_en_to_ro; choose one of translation_en_to_de,"):
            bf.pipeline("translation_en_to_ro", model, "clear")
    own, one = marian
    with bf.pipeline("translation_en_to_ro", one, "clear") as translate:
        assert translate(TEXTS[1], max_new_tokens=NEW) == [{"translation_text": own_answer(own, TEXTS[1])}]


def test_two_servers_write_for_a_client_that_only_splits_and_adds(marian, tmp_path):
    own, folder = marian
    with Helped(tmp_path, folder) as site, site.client() as client:
        results = dict(client.stream(TEXTS, options={"max_new_tokens": NEW}))
    assert [results[n].value for n in range(2)] == [[{"translation_text": own_answer(own, text)}] for text in TEXTS]
