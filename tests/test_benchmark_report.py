"""What `benchmarks.report` makes of records."""

import json

import pytest

from benchmarks import memory, record, report
from benchmarks.harness import Claim


def made_up_records():
  def group(run, experts, ours, hf):
    return {"run": run, "name": f"e{experts}/v512", "measurements": {
        label: {"spec": {"vocabulary": 512, "experts": experts},
                "tokens_per_second": speed, "peak_rss_mb": speed / 10}
        for label, speed in (("ours", ours), ("hf", hf))}}

  claims = [Claim("train_step/hf/e8/v512", "g", "ours", "hf", target=1.5),
            Claim("train_step/x", "g", "a", "b", target=1.1, at_most=True),
            Claim("train_step/without", "g", "a", "b"),
            Claim("train_step/wait", "g", "a", None, "step_seconds")]
  return {"train_step": {
      "suite": "train_step", "complete": True,
      "machine": {
          "processor": "A processor", "cores": 2, "commit": "0123456789",
          "versions": {"python": "3.11", "torch": None}},
      "groups": [group(0, 1, 5000, 4000), group(0, 8, 6000, 3000),
                 group(1, 8, 7000, 3000),
                 {"run": 0, "name": "growth", "measurements": {"e8": {}}}],
      "results": [claims[0].result([2.0, 2.3333]), claims[1].result([1.2]),
                  claims[2].result([1.3]), claims[3].result([4.5])]}}


def test_report_tables():
  text = report.markdown(made_up_records())
  assert "| 512 | dense | 5,000 | 4,000 |" in text
  assert "| 512 | 8 | 6,500 | 3,000 |" in text
  assert "A processor, 2 cores; python 3.11; commit 0123456." in text


def test_report_of_targets():
  text = report.claims_table(made_up_records())
  assert ("| `train_step/hf/e8/v512` | 2.17 (2.00 to 2.33) | at least 1.5 "
          "| yes |") in text
  assert "| `train_step/x` | 1.20 | at most 1.1 | **no** |" in text
  assert "without" not in text and "| `train_step/wait` | 4.50 s |" in text


def test_report_of_headlines(monkeypatch):
  monkeypatch.setattr(report, "HEADLINES", {
      "train_step/hf/e8/v512": "in words", "not/measured": "never"})
  assert report.headlines(made_up_records()).splitlines()[2:] == [
      "| in words | 2.17 |"]


PROFILE = {
    "suite": "profile", "complete": True, "results": [], "groups": [],
    "machine": {"processor": "A processor", "cores": 2, "versions": {}},
    "rates": {"torch": {"gflop_per_second": 164.6, "gb_per_second": 19.8}},
    "steps": [
        {"name": "ours/x", "step_seconds": 1.234, "matmul_gflop": 130.4,
         "matmul_gflop_per_second": 140, "messages": 7,
         "seconds": {"matmul": 0.9, "norm": 0.1}, "busy_seconds": [0.25, 0.5],
         "gb_per_second": {"matmul": 4.0, "norm": 7.6},
         "rss_mb": {"libraries": 580.4, "graph": 650, "variables": 800},
         "tensors_mb": {"matmul": 300.2, "norm": 100}},
        {"name": "hf/x", "step_seconds": 1.5, "matmul_gflop": 130,
         "matmul_gflop_per_second": 120, "seconds": {"matmul": 1.0},
         "rss_mb": {"libraries": 390}}]}


def test_report_of_a_profile():
  lines = report.profile_tables(PROFILE).splitlines()
  for line in (
      "|  | step | matmul | norm | matmul GFLOP at GFLOP/s |",
      "| ours/x | 1.23 | 0.900 | 0.100 (8) | 130 at 140 |",
      "| hf/x | 1.50 | 1.000 |  | 130 at 120 |",
      "`ours/x`: 7 messages in a step; the processes compute for 0.25 s and "
      "0.50 s of it.",
      "|  | libraries | graph | variables | tensors |",
      "| ours/x | 580 | 650 | 800 | 400 |",
      "| hf/x | 390 |  |  |  |"):
    assert line in lines
  assert "165 GFLOP/s" in lines[0] and "20 GB/s" in lines[0]


def test_report_command(tmp_path, capsys):
  (tmp_path / "train_step.json").write_text(
      json.dumps(made_up_records()["train_step"]))
  (tmp_path / "decode.json").write_text('{"suite": "decode"}')
  (tmp_path / "profile.json").write_text(json.dumps(PROFILE))
  paths = [tmp_path / name for name in ("README.md", "speed.md", "tables.md")]
  for path in paths:
    path.write_text(f"before\n{report.BEGIN}\nstale\n{report.END}\nafter\n")
  command = [f"--results={tmp_path}", *(
      f"--{name}={path}" for name, path in zip(
          ("readme", "speed", "tables"), paths, strict=True))]
  report.main(command)
  readme, speed, text = (path.read_text() for path in paths)
  assert report.headlines(made_up_records()) in readme
  assert report.claims_table(made_up_records()) in speed
  assert report.profile_tables(PROFILE) in text
  assert text.startswith("before\n") and text.endswith("after\n")
  assert "stale" not in text and "| 512 | 8 |" in text
  assert (tmp_path / "train_step.png").stat().st_size > 1000
  printed = capsys.readouterr()
  assert "| 512 | 8 |" in printed.out
  assert "decode.json: not complete, left out" in printed.err
  report.main(command)
  assert [path.read_text() for path in paths] == [readme, speed, text]


@pytest.mark.parametrize("text", [
    "", report.BEGIN, f"{report.END}{report.BEGIN}",
    f"{report.BEGIN}{report.END}{report.BEGIN}{report.END}"])
def test_report_needs_its_markers(text):
  with pytest.raises(ValueError, match="must have the markers once"):
    report.replace(text, "new")


def test_records_of_a_suite_are_joined(tmp_path):
  one = made_up_records()["train_step"]
  other = json.loads(json.dumps(one).replace("v512", "v4"))
  for name, content in (("a", one), ("b", other)):
    (tmp_path / f"{name}.json").write_text(json.dumps(content))
  joined = record.read(str(tmp_path))["train_step"]
  assert joined["groups"] == one["groups"] + other["groups"]
  assert [result["name"] for result in joined["results"]] == [
      result["name"] for result in one["results"] + other["results"]]
  other["machine"] |= {"commit": "another"}
  (tmp_path / "b.json").write_text(json.dumps(other))
  with pytest.raises(ValueError, match="records of one suite must come from "
                     "one machine and commit, with suite=train_step"):
    record.read(str(tmp_path))


# 500 to 400 MB; 600 to 300 and, in the second run, 700 to 300, on average.
MEMORY = ["memory/train/e1/v512 ratio=1.25 target=1 MISSED",
          "memory/train/e8/v512 ratio=2.17 target=1 MISSED"]


def test_memory_is_read_from_what_was_recorded(tmp_path, capsys):
  one = made_up_records()["train_step"]
  (tmp_path / "a.json").write_text(json.dumps(one))
  memory.main([f"--results={tmp_path}"])
  assert capsys.readouterr().out.splitlines() == MEMORY
  made = json.loads((tmp_path / "memory.json").read_text())
  assert made["complete"] and made["machine"] == one["machine"]
  other = one | {"suite": "decode", "machine": {"processor": "another"}}
  (tmp_path / "b.json").write_text(json.dumps(other))
  with pytest.raises(ValueError, match="memory: the records must come from "):
    memory.main([f"--results={tmp_path}"])


def test_memory_needs_a_record(tmp_path):
  with pytest.raises(ValueError, match="memory: there must be a complete "
                     "record of train_step or decode, with --results="):
    memory.main([f"--results={tmp_path}"])
