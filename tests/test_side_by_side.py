"""Commands that run at the same time."""

import json
import os
import signal
import sys
import threading
import time

import pytest

from switch_mtf.comparison import side_by_side


def python(code):
  return [sys.executable, "-c", f"import os, sys, time; {code}"]


def test_each_line_is_printed_after_the_name(capfd):
  codes = side_by_side.run({
      "one": python("print('a'); print('b'); print('c', file=sys.stderr)"),
      "two": python("print('d')")})
  assert codes == {"one": 0, "two": 0}
  printed = capfd.readouterr()
  assert sorted(printed.out.splitlines()) == ["one | a", "one | b", "two | d"]
  assert printed.err == "one | c\n"


def test_a_single_command_has_the_screen_to_itself(capfd):
  assert side_by_side.run({"one": python("print('a')")}) == {"one": 0}
  assert capfd.readouterr().out == "a\n"


def test_each_has_cores_of_its_own(capfd):
  cores = os.sched_getaffinity(0)
  side_by_side.run({
      name: python("print(sorted(os.sched_getaffinity(0)))")
      for name in ("one", "two")})
  one, two = (set(json.loads(line.split(" | ")[1]))
              for line in capfd.readouterr().out.splitlines())
  assert one | two == cores
  assert not one & two or len(cores) == 1


def test_all_run_at_the_same_time(tmp_path):
  # Each ends only when the other has begun.
  begun = [tmp_path / "one", tmp_path / "two"]
  wait = "\nwhile not os.path.exists({!r}): time.sleep(.01)"
  codes = side_by_side.run({
      own.name: python(f"open({str(own)!r}, 'w')" + wait.format(str(other)))
      for own, other in (begun, begun[::-1])})
  assert codes == {"one": 0, "two": 0}


def test_one_that_fails_stops_the_others():
  start = time.time()
  assert side_by_side.run({
      "one": python("time.sleep(60)"), "two": python("sys.exit(3)"),
  }) == {"one": -signal.SIGTERM, "two": 3}
  assert time.time() - start < 30


@pytest.mark.parametrize("names", [["one"], ["one", "two"]])
def test_sigterm_is_handed_on(names):
  before = signal.getsignal(signal.SIGTERM)
  timer = threading.Timer(1, os.kill, (os.getpid(), signal.SIGTERM))
  timer.start()
  codes = side_by_side.run({name: python("time.sleep(60)") for name in names})
  assert codes == {name: -signal.SIGTERM for name in names}
  assert signal.getsignal(signal.SIGTERM) == before


def test_sigterm_comes_once(tmp_path):
  # The second takes its time to stop, and says how often it was told to.
  slow = (
      "import signal; told = []"
      "\nsignal.signal(signal.SIGTERM, lambda *_: told.append(1))"
      f"\nopen({str(tmp_path / 'ready')!r}, 'w')"
      "\nwhile not told: time.sleep(.01)"
      "\ntime.sleep(1); sys.exit(40 + len(told))")

  def stop_when_ready():
    while not (tmp_path / "ready").exists():
      time.sleep(.01)
    os.kill(os.getpid(), signal.SIGTERM)

  threading.Thread(target=stop_when_ready).start()
  assert side_by_side.run({
      "one": python("time.sleep(60)"), "two": python(slow),
  }) == {"one": -signal.SIGTERM, "two": 41}
