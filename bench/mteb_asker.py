"""Runs MTEB's own tasks on data that it is given: the other process of bench/harness.py, in a Python that has mteb.

    PYTHON bench/mteb_asker.py [URL | FOLDER] < data.json

URL: a gateway, whose key is in OPENAI_API_KEY; FOLDER: a model for sentence-transformers. Prints the scores as JSON.
"""

# pyright: reportMissingImports=false

import json
import sys
from typing import Any

import mteb
import numpy as np
from datasets import Dataset, DatasetDict
from mteb.abstasks.classification import AbsTaskClassification
from mteb.abstasks.retrieval import AbsTaskRetrieval
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.models import ModelMeta
from mteb.similarity_functions import cos_sim, pairwise_cos_sim

GIVEN: dict[str, Any] = {}


def about(kind: str, score: str) -> TaskMetadata:
    source = {"path": "local", "revision": "none"}
    return TaskMetadata(
        name=f"Local{kind}", description="data of bench.harness", type=kind, dataset=source, category="t2t",
        eval_splits=["test"], eval_langs=["eng-Latn"], main_score=score,
    )  # fmt: skip


class Retrieval(AbsTaskRetrieval):
    metadata = about("Retrieval", "ndcg_at_10")

    def load_data(self, *given: Any, **more: Any) -> None:
        retrieval = GIVEN["retrieval"]
        self.corpus, self.queries = {"test": retrieval["corpus"]}, {"test": retrieval["queries"]}
        self.relevant_docs = {"test": {query: {document: 1} for query, document in retrieval["relevant"].items()}}
        self.data_loaded = True


class Classification(AbsTaskClassification):
    metadata = about("Classification", "accuracy")

    def load_data(self, *given: Any, **more: Any) -> None:
        self.dataset = DatasetDict({part: Dataset.from_dict(rows) for part, rows in GIVEN["classification"].items()})
        self.data_loaded = True


class GatewayEncoder:
    """An encoder that asks for embeddings, each text once."""

    def __init__(self, url: str) -> None:
        from openai import OpenAI

        self.client, self.known = OpenAI(base_url=f"{url}/v1", timeout=600), dict[str, list[float]]()
        self.mteb_model_meta = ModelMeta.create_empty()

    def encode(self, inputs: Any, **more: Any) -> np.ndarray:
        texts = [text for batch in inputs for text in batch["text"]]
        new = [text for text in dict.fromkeys(texts) if text not in self.known]
        for start in range(0, len(new), 16):
            chunk = new[start : start + 16]
            embeddings = self.client.embeddings.create(model=GIVEN["model"], input=chunk)
            self.known |= {text: item.embedding for text, item in zip(chunk, embeddings.data, strict=True)}
        return np.array([self.known[text] for text in texts])

    def similarity(self, one: Any, other: Any) -> Any:
        return cos_sim(one, other)

    def similarity_pairwise(self, one: Any, other: Any) -> Any:
        return pairwise_cos_sim(one, other)


def model(place: str) -> Any:
    if place.startswith("http"):
        return GatewayEncoder(place)
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(place)


def main() -> None:
    GIVEN.update(json.load(sys.stdin))
    evaluation = mteb.evaluate(model(sys.argv[1]), [Retrieval(), Classification()], cache=None, co2_tracker=False)
    scores = {result.task_name: result.scores["test"][0] for result in evaluation.task_results}
    names = {"LocalRetrieval": ("ndcg_at_10", "recall_at_1", "mrr_at_10"), "LocalClassification": ("accuracy", "f1")}
    shown = {
        f"{task.removeprefix('Local').lower()} {name}": scores[task][name] for task in names for name in names[task]
    }
    print(json.dumps({"version": mteb.__version__, "scores": shown}))


if __name__ == "__main__":
    main()
