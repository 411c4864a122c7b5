from switch_mtf.comparison import blanks


def test_merge_fills_each_blank_with_its_span():
  assert blanks.merge(
      "to <extra_id_0> or not to <extra_id_1>",
      "<extra_id_1> sleep <extra_id_0> be") == "to [be] or not to [sleep]"


def test_merge_marks_blanks_that_no_span_fills():
  assert blanks.merge(
      "a <extra_id_0> b <extra_id_1>", "<extra_id_0>") == "a [...] b [...]"
