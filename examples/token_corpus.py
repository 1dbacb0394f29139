"""A corpus of texts of every length, stored ragged and compressed, to jagged batches and a model.

Documents of four made-up languages are written as they come. Lengths are known without reading a
token. In each epoch a loader hands out every document once, in nested tensors: one run of tokens,
and where each document begins. That is what an embedding bag takes, so nothing is padded. A
classifier learns which language is which; then the tokens of some documents are stored as one text
and read in windows.

    python examples/token_corpus.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch

import tensorstash as stash
from tensorstash.torch import Loader, Windows

LANGUAGES = 4
WORDS = 500
DOCUMENTS = 2000


def write_corpus(place: Path) -> list[np.ndarray]:
    """Write documents of log-normal lengths; returns them, to compare."""
    random = np.random.default_rng(0)
    ranks = 1 / np.arange(1, WORDS + 1)  # as in real languages, few words are most of the text
    words = [random.permutation(WORDS) for _ in range(LANGUAGES)]
    written = []
    corpus = stash.create_records(
        place,
        {"tokens": stash.ragged("uint16"), "language": "int64", "title": str},
        rows_per_chunk=64,
        codecs="zstd",
    )
    with corpus.writer() as writer:
        for number in range(DOCUMENTS):
            language = number * LANGUAGES // DOCUMENTS  # the worst order: one after another
            length = int(random.lognormal(4, 1))
            tokens = words[language][random.choice(WORDS, length, p=ranks / ranks.sum())]
            written.append(tokens.astype("uint16"))
            row = {"tokens": written[-1], "language": language, "title": f"document {number}"}
            writer.append(row)
    return written


class Classifier(torch.nn.Module):
    """The mean of a document's word vectors, and a line between languages."""

    def __init__(self) -> None:
        super().__init__()
        self.words = torch.nn.EmbeddingBag(WORDS, 16, mode="mean")
        self.language = torch.nn.Linear(16, LANGUAGES)

    def forward(self, documents: torch.Tensor) -> torch.Tensor:
        """Logits of each document of a jagged batch."""
        starts = documents.offsets()[:-1]
        return self.language(self.words(documents.values().long(), starts))


def main() -> None:
    """Write, compare, train, and read as one text."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "corpus"
        written = write_corpus(place)
        corpus = stash.open_records(place)
        lengths = corpus.lengths("tokens")  # reads no token
        assert np.array_equal(lengths, [len(tokens) for tokens in written])
        raw = int(lengths.sum()) * 2
        stored = sum(path.stat().st_size for path in place.rglob("*") if path.is_file())
        print(f"{len(corpus)} documents of {lengths.min()} to {lengths.max()} tokens")
        print(f"{raw:,} bytes of tokens; {stored:,} stored, with titles and all else")

        loader = Loader(corpus.ragged_as("jagged"), batch_size=32, shuffle=True, seed=0)
        quality = loader.quality()
        print(f"batch means spread {quality['inflation']:.2f} times as far as a true shuffle's")

        model = Classifier()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
        for epoch in range(3):
            seen, right = set(), 0
            for batch in loader:
                documents, language = batch["tokens"], batch["language"]
                assert documents.is_nested
                for tokens, title in zip(documents.unbind(), batch["title"], strict=True):
                    number = int(title.removeprefix("document "))
                    assert np.array_equal(tokens.numpy(), written[number])
                    seen.add(number)
                logits = model(documents)
                loss = torch.nn.functional.cross_entropy(logits, language)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                right += int((logits.argmax(dim=1) == language).sum())
            assert len(seen) == DOCUMENTS, "every document, once"
            print(f"epoch {epoch}: {right / DOCUMENTS:.1%} right")
        assert right > 0.95 * DOCUMENTS

        # Windows of a language model: the documents of a part, as they are now, end to end.
        train = corpus.split({"train": 0.9, "test": 0.1}, seed=0)["train"].ragged_as("jagged")
        end_to_end = stash.create(Path(folder) / "text.zarr", (0,), "uint16", chunks=(1 << 16,))
        for batch in train.iter_batches(256):
            end_to_end.append(batch["tokens"].values)
        text = Windows(end_to_end, length=129, stride=128)
        for batch in Loader(text, batch_size=16):
            given, wanted = batch[:, :-1], batch[:, 1:]  # what a language model is trained on
            assert torch.equal(given[:, 1:], wanted[:, :-1])
        whole = np.concatenate(train.ragged_as("list")[:]["tokens"])
        assert len(end_to_end) == train.lengths("tokens").sum() == len(whole)
        assert np.array_equal(text[1], whole[128:257])
        print(f"{len(text)} windows of 129 tokens over the text of {len(train)} documents")


if __name__ == "__main__":
    main()
