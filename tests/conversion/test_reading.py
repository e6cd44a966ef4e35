"""Conversion reads tensor by tensor: what it has read is let go of before the next record is read."""

from __future__ import annotations

import weakref

import numpy as np

import endor_jax as endor
from endor_jax.conversion import pipeline
from endor_jax.sources import open_source
from tests.tiny_models import LLAMA, write_tiny

MORE = LLAMA | {"num_hidden_layers": 6, "vocab_size": 9000, "tie_word_embeddings": False}


class Recording:
    """A source that notes which tensors it was asked for and which of them are still in memory."""

    def __init__(self, source):
        self._source = source
        self.reads: list[str] = []
        self.alive: dict[str, list[weakref.ref]] = {}
        self.most_bytes = 0

    path = property(lambda self: self._source.path)
    config = property(lambda self: self._source.config)
    tensors = property(lambda self: self._source.tensors)

    def read(self, name: str) -> np.ndarray:
        held = [name for name, refs in self.alive.items() for ref in refs if ref() is not None]
        assert name not in held, f"{name} is read while it is in memory"
        array = self._source.read(name)
        self.reads.append(name)
        self.alive.setdefault(name, []).append(weakref.ref(array))
        size = array.nbytes + sum(self.tensors[other].nbytes for other in held)
        self.most_bytes = max(self.most_bytes, size)
        return array

    def files(self):
        return self._source.files()

    def close(self):
        self._source.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def test_one_record_or_the_largest_tensor_is_in_memory(tmp_path, monkeypatch):
    source = write_tiny(tmp_path / "source", MORE)
    opened: list[Recording] = []

    def recorded(path):
        opened.append(Recording(open_source(path)))
        return opened[-1]

    monkeypatch.setattr(pipeline, "open_source", recorded)
    endor.convert(source, tmp_path / "dst")
    [recording] = opened
    sizes = {name: info.nbytes for name, info in recording.tensors.items()}
    layer = sum(size for name, size in sizes.items() if ".layers.0." in name)
    assert recording.most_bytes <= max(layer, *sizes.values())
    # Once for the codecs, from three layers at most, and once to be stored.
    counts = {name: recording.reads.count(name) for name in sizes}
    assert set(counts.values()) <= {1, 2}
    assert counts["model.layers.1.mlp.up_proj.weight"] == 1
    assert counts["model.layers.0.mlp.up_proj.weight"] == 2


def test_pruned_tensors_do_not_keep_what_they_were_made_of(tmp_path, monkeypatch):
    source = write_tiny(tmp_path / "source", MORE)
    opened: list[Recording] = []

    def recorded(path):
        opened.append(Recording(open_source(path)))
        return opened[-1]

    monkeypatch.setattr(pipeline, "open_source", recorded)
    endor.convert(source, tmp_path / "dst", prune="magnitude", sparsity=0.5, dtype="bfloat16")
    sizes = {name: info.nbytes for name, info in opened[0].tensors.items()}
    # Norms are copied by the cast, matrices by the mask: only the one being read is in memory as it came.
    assert opened[0].most_bytes <= max(sizes.values())
