"""The metrics of the pre-training tasks."""

from collections.abc import Sequence


def span_scores(
    targets: Sequence[str], predictions: Sequence[str | float],
) -> dict[str, float]:
  """Returns the metrics of filled-in spans, from decoded text or from scores.

  The decoded text rarely equals the target, so words are counted too: a word is
  right if the target has the same word at the same place of the same span.

  Args:
    targets: masked spans, each after its sentinel, as text.
    predictions: the model's text; or, with `utils.eval_model.eval_with_score`,
      the log-likelihood of each target, in nats.

  Returns:
    From text, "sequence_accuracy" and "word_accuracy" in per cent; from scores,
    "log_likelihood_per_byte" in nats.
  """
  if predictions and not isinstance(predictions[0], str):
    num_bytes = sum(len(t.encode()) for t in targets)
    return {"log_likelihood_per_byte":
                float(sum(predictions)) / max(num_bytes, 1)}
  exact = sum(t == p for t, p in zip(targets, predictions, strict=True))
  words = [_words(t) for t in targets]
  right = sum(len(w & _words(p))
              for w, p in zip(words, predictions, strict=True))
  return {
      "sequence_accuracy": 100.0 * exact / max(len(targets), 1),
      "word_accuracy": 100.0 * right / max(sum(map(len, words)), 1),
  }


def _words(spans: str) -> set[tuple[str, int, str]]:
  """Returns (sentinel, place in the span, word) for each word of a text."""
  words = set()
  sentinel, place = "", 0
  for word in spans.split():
    if word.startswith("<extra_id_"):
      sentinel, place = word, 0
    else:
      words.add((sentinel, place, word))
      place += 1
  return words
