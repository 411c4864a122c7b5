"""Command line of the planner; see `switch_mtf.planning`."""

import argparse
import importlib
import json
import logging
import sys

from switch_mtf import errors, gin_checks, gin_files
from switch_mtf.planning import advice, devices, report
from switch_mtf.planning.configuration import ROOT, start_graph_mode
from switch_mtf.planning.plan import plan
from switch_mtf.training import guards


def _arguments() -> argparse.Namespace:
  """Parses the flags."""
  parser = argparse.ArgumentParser(
      prog="python -m switch_mtf.planning", description=__doc__)
  parser.add_argument("--gin_file", action="append", default=[],
                      help="as for run_t5.py; a model without a run is planned "
                      "as the paper's pre-training")
  parser.add_argument("--gin_param", action="append", default=[])
  parser.add_argument("--module_import", action="append", default=["tasks"])
  parser.add_argument("--mesh_shape", help="e.g. batch:32 or model:8,batch:64")
  parser.add_argument("--device", choices=devices.names(),
                      help="default: cpu for one processor, else tpu_v3")
  parser.add_argument("--json", action="store_true")
  for flag in ("--model_dir", "--tpu"):
    parser.add_argument(flag, help="ignored; accepted so that the flags of a "
                        "run_t5.py command can be used unchanged")
  parser.add_argument("--picture", metavar="FILE",
                      help="draw which core holds which slices")
  return parser.parse_args()


def main() -> int:
  """Prints the plan of a run.

  Returns:
    0 if the run fits, 1 if it does not, 2 if it could not start.
  """
  arguments = _arguments()
  # gin logs an error for each search path that lacks a file.
  logging.getLogger().setLevel(logging.CRITICAL)
  start_graph_mode()
  try:
    for name in arguments.module_import:
      gin_checks.check_module(name, "--module_import")
      importlib.import_module(name)
    guards.check_gin_files(
        arguments.gin_file, [str(ROOT), gin_files.T5_FOLDER])
    found = plan(arguments.gin_file, arguments.gin_param,
                 device=arguments.device, mesh_shape=arguments.mesh_shape)
    found = advice.checked(found, arguments.gin_file, arguments.gin_param,
                           arguments.mesh_shape)
  except (ValueError, OSError) as error:
    print(errors.user_message(error) or error, file=sys.stderr)
    return 2
  print(json.dumps(found.as_dict(), indent=1) if arguments.json
        else report.text(found))
  if arguments.picture:
    from switch_mtf.planning import picture
    picture.draw(found, arguments.picture)
  return 0 if found.advice.fits else 1


if __name__ == "__main__":
  sys.exit(main())
