"""The harness of `benchmarks/` with workers that only pretend."""

import dataclasses
import io
import json
import sys

import pytest

from benchmarks import (
  decode,
  harness,
  record,
  scale,
  startup,
  train_step,
  worker,
)
from benchmarks.harness import Claim, Group, Job, Suite
from benchmarks.spec import Spec, Subject

# A worker without libraries: a step takes as many seconds as the model has
# experts, and every turn is noted in the file that is its last argument.
FAKE = """
import json, sys
spec = json.loads(sys.argv[1])
build = json.loads(sys.argv[2]) if len(sys.argv) > 2 else {}
if spec["batch"] == 0:
  sys.exit("no batch")
facts = {"parameters": 7, "updated_parameters": 7, "build": build,
         "tokens_per_expert": {"min": spec["inputs"], "max": 9}}
print(json.dumps({"facts": facts, "build_seconds": 0.5, "warm_up_seconds": 0.5,
                  "peak_rss_mb": 1.0}), flush=True)
for line in sys.stdin:
  with open(build.get("note", "/dev/null"), "a") as f:
    f.write(f"{spec['subject']} {line}")
  if spec["batch"] == 3:
    sys.exit("out of memory")
  answer = {"seconds": [float(spec["experts"])] * int(line.split()[1]),
            "peak_rss_mb": 100.0 * spec["experts"]}
  print(json.dumps(answer), flush=True)
"""


@pytest.fixture
def command(tmp_path):
  script = tmp_path / "fake.py"
  script.write_text(FAKE)
  return [sys.executable, str(script)]


def job(subject="ours", note=None, **fields):
  build = {"note": str(note)} if note else {}
  return Job(harness.SHORT[subject], Spec(subject, "train", **fields), build)


def quiet(text):
  pass


def test_tokens():
  assert Spec("ours", "train", batch=2, inputs=3, targets=5).tokens == 16
  assert Spec("ours", "decode", batch=2, inputs=3, targets=5).tokens == 10


def test_jobs_take_turns(command, tmp_path):
  note = tmp_path / "turns"
  group = Group("g", (job("ours", note, experts=2),
                      job("hugging_face", note, experts=4)))
  found = harness.measure(group, 3, 2, command, quiet)
  assert note.read_text().splitlines() == ["ours go 2", "hugging_face go 2"] * 3
  assert list(found) == ["ours", "hf"]
  assert found["hf"]["seconds"] == [4.0] * 6
  assert found["hf"]["step_seconds"] == 4
  assert found["hf"]["tokens_per_second"] == 16 * (256 + 64) / 4
  assert found["hf"]["peak_rss_mb"] == 400
  assert found["ours"]["facts"]["parameters"] == 7
  assert found["ours"]["spec"] == dataclasses.asdict(group.jobs[0].spec)


@pytest.mark.parametrize("batch, says", [(0, "no batch"), (3, "out of memory")])
def test_a_worker_that_dies_is_shown(command, batch, says):
  with pytest.raises(RuntimeError, match="a worker must answer, with job=ours, "
                     f"exit code=1.*\n.*{says}"):
    harness.measure(Group("g", (job(batch=batch),)), 1, 1, command, quiet)


@pytest.mark.parametrize("target, at_most, line", [
    (1.5, False, "a ratio=2.00 target=1.5 ok"),
    (2.5, False, "a ratio=2.00 target=2.5 MISSED"),
    (2.5, True, "a ratio=2.00 target=2.5 ok"),
    (1.5, True, "a ratio=2.00 target=1.5 MISSED"),
    (None, False, "a ratio=2.00")])
def test_line_of_a_ratio(target, at_most, line):
  claim = Claim("a", "g", "x", "y", target=target, at_most=at_most)
  value = claim.value({"x": {"tokens_per_second": 6},
                       "y": {"tokens_per_second": 3}})
  assert harness.line(claim.result([value])) == line


def test_line_of_seconds():
  claim = Claim("a", "g", "x", None, "step_seconds", 12, at_most=True)
  value = claim.value({"x": {"step_seconds": 9.876}})
  assert harness.line(claim.result([value])) == "a seconds=9.88 target=12 ok"


def test_a_target_is_not_met_by_rounding():
  claim = Claim("a", "g", "x", "y", target=1.5)
  assert harness.line(claim.result([1.4999])) == (
      "a ratio=1.50 target=1.5 MISSED")


def test_the_median_of_the_runs_counts():
  result = Claim("a", "g", "x", "y", target=1.5).result([1.0, 2.0, 1.6])
  assert (result["value"], result["min"], result["max"]) == (1.6, 1.0, 2.0)
  assert result["ok"]


class Suites:
  """Runs a suite of two groups, counting what is measured."""

  def __init__(self, command, path):
    self.command, self.path, self.measured = command, path, []
    self.fail = None
    groups = tuple(
        Group(f"e{e}/v512", (job("ours", experts=e),
                             job("hugging_face", experts=2 * e)))
        for e in (2, 4))
    self.suite = Suite("made_up", groups, tuple(
        Claim(f"made_up/hf/{g.name}", g.name, "ours", "hf", target=1.5)
        for g in groups))

  def run(self, *arguments):
    options = harness.parser("made_up", alternations=2).parse_args(
        [f"--output={self.path}", *arguments])
    return harness.run(self.suite, options, self._measure)

  def read(self):
    return json.loads(self.path.read_text())

  def _measure(self, group, alternations, steps, tell):
    if group.name == self.fail:
      raise RuntimeError("stopped")
    self.measured.append(group.name)
    return harness.measure(group, alternations, steps, self.command, tell)


@pytest.fixture
def suites(command, tmp_path):
  return Suites(command, tmp_path / "results" / "made_up.json")


def test_suite_prints_and_records(suites, capsys):
  suites.run("--runs=2")
  assert capsys.readouterr().out.splitlines() == [
      "made_up/hf/e2/v512 ratio=2.00 target=1.5 ok",
      "made_up/hf/e4/v512 ratio=2.00 target=1.5 ok"]
  data = suites.read()
  assert data["complete"] and data["suite"] == "made_up"
  assert [(g["run"], g["name"]) for g in data["groups"]] == [
      (0, "e2/v512"), (0, "e4/v512"), (1, "e2/v512"), (1, "e4/v512")]
  assert data["groups"][0]["measurements"]["hf"]["seconds"] == [4.0] * 2
  assert data["results"][0]["name"] == "made_up/hf/e2/v512"
  assert data["machine"]["versions"]["mesh-tensorflow"] == "0.1.21"
  assert data["machine"]["cores"] and data["machine"]["processor"]
  assert not suites.path.with_name("made_up.json.tmp").exists()


def test_suite_goes_on_where_it_was(suites, capsys):
  suites.fail = "e4/v512"
  with pytest.raises(RuntimeError, match="stopped"):
    suites.run()
  assert not suites.read()["complete"]
  suites.fail = None
  suites.run("--resume")
  assert suites.measured == ["e2/v512", "e4/v512"]
  assert len(capsys.readouterr().out.splitlines()) == 2
  suites.run()
  assert suites.measured == ["e2/v512", "e4/v512"] * 2


def test_suite_does_not_go_on_with_other_options(suites):
  suites.run()
  with pytest.raises(ValueError, match="--resume must go on with the same "
                     "options, with before=.*'alternations': 2"):
    suites.run("--resume", "--alternations=3")


def test_suite_warns_of_a_busy_machine(suites, capsys, monkeypatch):
  monkeypatch.setattr(harness.os, "getloadavg", lambda: (9.0, 0.0, 0.0))
  suites.run()
  assert "the machine should do nothing else, with load average=9.00" in (
      capsys.readouterr().err)


def test_machine_without_git(monkeypatch):
  def no_git(*args, **kwargs):
    raise FileNotFoundError("git")

  monkeypatch.setattr(record.subprocess, "run", no_git)
  assert record.machine()["commit"] is None


class Counting(Subject):
  """A subject that counts its steps."""

  def __init__(self):
    self.facts, self.steps = {}, 0

  def step(self):
    self.steps += 1


def test_worker_answers_each_line():
  subject, answers = Counting(), io.StringIO()
  worker.serve(subject, io.StringIO("go 2\ngo 1\n"), answers)
  first, second = map(json.loads, answers.getvalue().splitlines())
  assert subject.steps == 3
  assert len(first["seconds"]) == 2 and len(second["seconds"]) == 1
  assert second["peak_rss_mb"] > 1


def test_worker_refuses_other_lines():
  with pytest.raises(ValueError, match="must be `go N` or `profile`, with "
                     "line='stop'"):
    worker.serve(Counting(), io.StringIO("stop\n"), io.StringIO())


def test_unknown_subject_is_refused():
  with pytest.raises(ValueError, match="subject must be one of ours, upstream, "
                     "hugging_face, with subject=theirs"):
    worker.build(Spec("theirs", "train"))


def test_train_step_claims():
  suite = train_step.suite(
      (1, 8, 32, 128), (512, 32128), ("upstream", "hugging_face"))
  targets = {claim.name: (claim.target, claim.at_most)
             for claim in suite.claims}
  assert len(targets) == 2 * (4 * 2 + 1) + 1
  assert targets["train_step/hf/e1/v512"] == (1.2, False)
  assert targets["train_step/upstream/e1/v512"] == (None, False)
  assert targets["train_step/hf/e32/v32128"] == (1.5, False)
  assert targets["train_step/upstream/e32/v512"] == (1.6, False)
  assert targets["train_step/upstream/e32/v32128"] == (2.2, False)
  assert targets["train_step/growth/e8_to_e128/v512"] == (1.35, True)
  assert targets["train_step/sparse_tax/e32/v512"] == (1.08, True)
  tax = {g.name: g for g in suite.groups}["sparse_tax/e32/v512"]
  assert {(j.spec.task, j.spec.experts, j.spec.capacity_factor)
          for j in tax.jobs} == {
              ("forward_backward", 32, 1.0), ("forward_backward", 1, 1.0)}


@pytest.mark.parametrize("suite", [
    train_step.suite((1, 8, 32, 128), (512, 32128), ("hugging_face",)),
    decode.suite((1, 8, 32), (8, 32, 128), (32128,), ("hugging_face",)),
    scale.suite((1, 2)), startup.suite()], ids=lambda suite: suite.name)
def test_claims_name_what_is_measured(suite):
  labels = {g.name: [j.label for j in g.jobs] for g in suite.groups}
  assert len(labels) == len(suite.groups)
  assert len({claim.name for claim in suite.claims}) == len(suite.claims)
  for claim in suite.claims:
    assert claim.name.startswith(f"{suite.name}/")
    assert claim.over in labels[claim.group]
    assert claim.under is None or claim.under in labels[claim.group]


def test_decode_claims():
  suite = decode.suite((1, 8, 32), (8, 128), (32128,), ("hugging_face",))
  targets = {claim.name: claim.target for claim in suite.claims}
  assert targets["decode/hf/b1/e8"] == targets["decode/hf/b8/e128"] == 2
  assert targets["decode/hf/b32/e8"] is None
  assert targets["decode/growth/b32/e8_to_e128"] == 1.1
  assert all(job.spec.tokens == job.spec.batch * 64
             for group in suite.groups for job in group.jobs)


def found(experts=4, **facts):
  return {"spec": {"experts": experts}, "facts": facts}


@pytest.mark.parametrize("facts", [
    {"tokens_per_expert": {"min": 0, "max": 9}, "updated_parameters": 1},
    {"updated_experts": {"min": 3, "max": 4}, "updated_parameters": 1},
    {"updated_parameters": 1}])
def test_idle_experts_are_refused(facts):
  with pytest.raises(ValueError, match="every expert must get tokens, with "
                     "group=e4/v512, subject=hf, experts=4"):
    train_step.check(Group("e4/v512", ()), {"hf": found(**facts)})


def test_different_work_is_refused():
  busy = {"tokens_per_expert": {"min": 1, "max": 9}}
  with pytest.raises(ValueError, match="must update equally many parameters, "
                     "with group=e4/v512, ours=1,000, hf=980"):
    train_step.check(Group("e4/v512", ()), {
        "ours": found(updated_parameters=1000, **busy),
        "hf": found(updated_parameters=980, **busy)})
  train_step.check(Group("growth/e8_to_e128/v512", ()), {
      "e8": found(updated_parameters=1000, **busy),
      "e128": found(updated_parameters=9000, **busy)})


def test_startup_waits_for_a_line(tmp_path):
  path = tmp_path / "written"
  seconds = startup.seconds_until(
      [sys.executable, "-c", "import sys, time; time.sleep(.2); "
       "print(file=open(sys.argv[1], 'w')); time.sleep(60)", str(path)],
      str(path))
  assert 0.2 <= seconds < 30


def test_startup_shows_what_went_wrong(tmp_path):
  with pytest.raises(RuntimeError, match="must write metrics.jsonl, with "
                     "seconds=.*, exit code=1.*\n.*no such model"):
    startup.seconds_until(
        [sys.executable, "-c", "import sys; sys.exit('no such model')"],
        str(tmp_path / "metrics.jsonl"))


def test_ports_are_free_and_different():
  assert len(set(scale.free_ports(2))) == 2


def test_groups_of_another_machine_and_commit_say_so(tmp_path):
  path = str(tmp_path / "record.json")
  old = record.Record(path, "any", {}, resume=False)
  old.data["machine"] |= {"commit": "older", "processor": "another"}
  old.add(0, "a", 0.0, {})
  new = record.Record(path, "any", {}, resume=True, same_machine=False)
  new.add(0, "b", 0.0, {})
  assert [(group.get("commit"), group.get("processor"))
          for group in new.data["groups"]] == [
              ("older", "another"), (None, None)]
  assert new.data["machine"] == record.machine()
