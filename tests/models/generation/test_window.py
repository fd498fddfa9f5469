"""With a window each token reads the public prefix and the last tokens, however long the conversation is."""

import pytest
import torch
from blindformer.models.generation.decoder import Decoder, GenerationError, conversation
from blindformer.models.generation.rows import MAX_ROLLBACK_ROWS, KVState, behind, room, run_clear, window
from blindformer.parties.session.online import part_run, passes
from blindformer.tests.models.generation.conftest import PREFIX, WINDOW, small, some
from blindformer.tests.patience import PATIENCE
from blindformer.tests.shared.threads import ThreadParties

TEXT = some(220, 9)
MODELS = {
    "rotated keys": lambda: small(num_key_value_heads=2),
    "positions of a table": lambda: small("GPT2"),
    "a window of its own": lambda: small("Mistral", num_key_value_heads=2, sliding_window=12),
}


def attended(model, text, window=WINDOW):
    """The last hidden states of a text in torch, under a mask that says what each token reads."""
    at, first = torch.arange(len(text)), len(PREFIX)
    distance = at[:, None] - at[None]
    own = getattr(model.config, "sliding_window", None) or len(text)
    seen = (distance >= 0) & (distance < own) & ((distance < window) | (at < first))
    mask = torch.zeros(len(text), len(text)).masked_fill(~seen, torch.finfo().min)[None, None]
    with torch.no_grad():
        return model.base_model(input_ids=text[None], attention_mask=mask).last_hidden_state[0, first:]


@pytest.fixture
def wanted():
    return attended(small(num_key_value_heads=2), torch.cat([torch.tensor(PREFIX), TEXT]))


@pytest.fixture
def rows(windowed):
    return KVState(windowed.program, run_clear(windowed.parts, windowed.weights), PREFIX)


def close(ours, wanted):
    torch.testing.assert_close(ours, wanted, rtol=0, atol=3e-2)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("size", [1, 7])
def test_passes_give_what_the_mask_gives(name, size):
    wanted = attended(MODELS[name](), torch.cat([torch.tensor(PREFIX), TEXT[:70]]))
    decoder = Decoder(MODELS[name](), torch.tensor(PREFIX), window=WINDOW).eval()
    for batch in conversation(decoder, TEXT[:70], size, WINDOW):
        at = int(batch["rows"]) + torch.arange(size)
        with torch.no_grad():
            torch.testing.assert_close(decoder(**batch)["hidden"][0], wanted[at], rtol=1e-4, atol=1e-4)


def test_a_conversation_goes_on_past_the_window_at_one_price(rows, wanted, windowed):
    asked, run = [], rows.run
    rows.run = lambda name, *given: asked.append(name) or run(name, *given)
    passes = [rows.read(TEXT[:30].tolist()), *(rows.read([token]) for token in TEXT[30:40].tolist())]
    passes += [rows.read(TEXT[40:].tolist())]
    close(torch.cat(passes), wanted)
    assert set(asked) == {f"8@{WINDOW}", f"1@{WINDOW}"}
    assert room(windowed.program) == 220
    with pytest.raises(GenerationError, match="tokens exceed its 220"):
        rows.read([5])


def test_rows_that_no_pass_reads_are_dropped(windowed):
    with ThreadParties(windowed, timeout=PATIENCE) as session:
        KVState(windowed.program, passes(session.client, windowed.parts), PREFIX).read(TEXT.tolist())
        stored = [*session.client.states.held.values(), *session.client.prepared.held.values()]
        assert {rows.shape[-2] for rows in stored} <= set(range(WINDOW, WINDOW + 128 + 16))
        assert session.client.states.rows("key_0") == 220


def test_forgotten_drafts_give_back_what_was_read_before(rows, wanted):
    rows.read(TEXT[:100].tolist())
    rows.read(some(12, 3).tolist())  # drafts, all wrong
    rows.crop(len(PREFIX) + 100)
    assert rows.rows == 100
    close(rows.read(TEXT[100:120].tolist()), wanted[100:120])


def test_a_conversation_that_goes_far_back_is_read_again(rows, wanted):
    rows.read(TEXT[:200].tolist())
    rows.crop(len(PREFIX) + 200 - MAX_ROLLBACK_ROWS)
    assert rows.rows == 200 - MAX_ROLLBACK_ROWS
    rows.crop(len(PREFIX) + 50)
    assert rows.rows == 0
    close(rows.read(TEXT[:60].tolist()), wanted[:60])
    rows.crop(len(PREFIX) + 10)  # nothing was dropped since
    assert rows.rows == 10


def test_correlations_are_made_ahead_up_to_the_end_of_the_conversation(windowed):
    part = f"1@{WINDOW}"
    assert behind(windowed.program, part) == 220
    assert [part_run(windowed.program, part, rows).runs for rows in (100, 217)] == [8, 3]


def test_a_window_reads_one_token_at_least():
    with pytest.raises(GenerationError, match="window 0: a token reads itself"):
        Decoder(small(), torch.tensor(PREFIX), window=0)


def test_other_programs_have_no_window(compiled, windowed):
    assert window(compiled.program) == 0
    assert window(windowed.program) == WINDOW
