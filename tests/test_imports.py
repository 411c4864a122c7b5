"""Who may import whom: the table of CONTRIBUTING.md."""

import ast
import pathlib
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]

# The first entry that a module's name starts with says what it may import of
# ours: modules, or packages with all that is in them. Imports go down only, as
# CONTRIBUTING.md has it. Anyone may import upstream, which comes first.
LOW = ["switch_mtf.dims", "switch_mtf.errors", "switch_mtf.gin_checks",
       "switch_mtf.gin_files", "switch_mtf.gin_syntax", "switch_mtf.gin_values",
       "switch_mtf.mesh"]
RUN = [*LOW, "switch_mtf.kernels", "switch_mtf.layers", "switch_mtf.training"]
ALLOWED = {
    "switch_mtf.upstream": [],
    "switch_mtf.errors": [],
    "switch_mtf.mesh": ["switch_mtf.errors"],
    "switch_mtf.dims": ["switch_mtf.errors", "switch_mtf.mesh"],
    "switch_mtf.gin_syntax": [],
    "switch_mtf.gin_files": ["switch_mtf.errors", "switch_mtf.gin_syntax"],
    "switch_mtf.gin_values": ["switch_mtf.errors", "switch_mtf.gin_files"],
    "switch_mtf.gin_checks": [
        "switch_mtf.errors", "switch_mtf.gin_files", "switch_mtf.gin_values"],
    "switch_mtf.doctor": ["switch_mtf.errors"],
    "switch_mtf.kernels": [*LOW, "switch_mtf.kernels"],
    "switch_mtf.layers": [*LOW, "switch_mtf.kernels", "switch_mtf.layers"],
    "switch_mtf.training": RUN,
    "switch_mtf.comparison": [*RUN, "switch_mtf.comparison"],
    # Its report reads runs as that of a comparison does.
    "switch_mtf.distillation.report": [
        *RUN, "switch_mtf.comparison.report", "switch_mtf.distillation"],
    "switch_mtf.distillation": [*RUN, "switch_mtf.distillation"],
    "switch_mtf.checkpoints": [*RUN, "switch_mtf.checkpoints"],
    "switch_mtf.planning": [*RUN, "switch_mtf.planning"],
    "switch_mtf": [],
    "tasks": ["tasks"],
    "run_t5": ["switch_mtf", "tasks"],
}

# Inside layers: the layer joins the others, which know the result, not each
# other. The first line are leaves.
LAYERS = {
    "stateless": [], "losses": [], "summaries": [], "initialization": [],
    "slots": [],
    "exploration": ["stateless"],
    "routing": ["exploration", "initialization", "losses", "slots"],
    "routers": ["routing", "exploration", "stateless", "losses", "slots"],
    "dispatch": ["routing"],
    "experts": ["stateless", "initialization"],
}


def imports(source):
  """Full names that a source imports, also inside functions."""
  for node in ast.walk(ast.parse(source)):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, "relative import"
      yield from (f"{node.module}.{alias.name}" for alias in node.names)


def module_imports(source):
  """Full names that are imported when the module is, not inside functions."""
  for node in ast.parse(source).body:
    if isinstance(node, ast.Import | ast.ImportFrom):
      yield from imports(ast.unparse(node))


def is_in(name, packages):
  return any(name == p or name.startswith(p + ".") for p in packages)


def wrong_imports(module, source):
  """What `module` imports of ours and may not."""
  allowed = next(v for k, v in ALLOWED.items() if is_in(module, [k]))
  ours = [name for name in imports(source)
          if is_in(name, ["switch_mtf", "tasks"])]
  return [name for name in ours if not is_in(name, allowed)
          and not is_in(name, ["switch_mtf.upstream"])]


def patched(source):
  """Attributes of other packages' modules that a source sets or deletes."""
  tree = ast.parse(source)
  upstream = set()
  for node in ast.walk(tree):
    if isinstance(node, ast.Import | ast.ImportFrom):
      where = getattr(node, "module", None) or node.names[0].name
      if not is_in(where, ["switch_mtf", "tasks"]):
        upstream |= {(a.asname or a.name).split(".")[0] for a in node.names}

  def root(node):
    while isinstance(node, ast.Attribute | ast.Subscript):
      node = node.value
    return node.id if isinstance(node, ast.Name) else None

  for node in ast.walk(tree):
    changed = isinstance(node, ast.Attribute | ast.Subscript) and isinstance(
        node.ctx, ast.Store | ast.Del)
    if changed and root(node) in upstream:
      yield ast.unparse(node)
    if isinstance(node, ast.Call) and root(node.func) in ("setattr", "delattr"):
      if root(node.args[0]) in upstream:
        yield ast.unparse(node)


def modules(folder):
  for path in sorted((ROOT / folder).rglob("*.py")):
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    yield name.removesuffix(".__init__"), path.read_text()


MODULES = {**dict(modules("switch_mtf")), **dict(modules("tasks")),
           "run_t5": (ROOT / "run_t5.py").read_text()}


def test_modules_are_found():
  assert {"switch_mtf", "switch_mtf.dims", "switch_mtf.upstream",
          "switch_mtf.layers.switch_ffn", "switch_mtf.training",
          "tasks"} <= set(MODULES)


def test_the_tables_name_what_exists():
  named = {*ALLOWED, *(name for names in ALLOWED.values() for name in names)}
  assert named <= set(MODULES)
  named = {*LAYERS, *(name for names in LAYERS.values() for name in names)}
  assert {f"switch_mtf.layers.{name}" for name in named} <= set(MODULES)


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_down(module):
  assert wrong_imports(module, MODULES[module]) == []


@pytest.mark.parametrize("module", LAYERS)
def test_inside_layers(module):
  # "from switch_mtf.layers import x" and "from switch_mtf.layers.x import y".
  prefix = "switch_mtf.layers."
  found = {name.removeprefix(prefix).split(".")[0]
           for name in imports(MODULES[prefix + module])
           if name.startswith(prefix)}
  assert found <= set(LAYERS[module])


@pytest.mark.parametrize(
    "module", [m for m in MODULES if m.startswith("switch_mtf")])
def test_only_upstream_patches_upstream(module):
  found = list(patched(MODULES[module]))
  if module.startswith("switch_mtf.upstream."):
    # What comes before TensorFlow patches by way of late_imports; what reads
    # files patches nothing, but is for all.
    assert found or module.rsplit(".", 1)[-1] in (
        "before_tensorflow", "task_examples", "text_files")
  else:
    assert found == []


def test_only_upstream_puts_off_imports():
  assert [module for module, source in MODULES.items()
          if "switch_mtf.upstream.late_imports" in imports(source)] == [
              "switch_mtf.upstream.before_tensorflow"]


# Rooms whose import applies upstream's patches.
FIRST = ("switch_mtf.upstream", "switch_mtf.kernels", "switch_mtf.layers")
LATE = ("mesh_tensorflow", "t5", "seqio", "tensorflow")


def comes_first(source):
  """Whether a source imports one of `FIRST` before all but the standard."""
  names = [n for n in imports(source)
           if n.split(".")[0] not in sys.stdlib_module_names]
  return bool(names) and is_in(names[0], FIRST)


@pytest.mark.parametrize(
    "module", [m for m in MODULES if m.startswith("switch_mtf.")])
def test_upstream_comes_first(module):
  # Before mesh_tensorflow, which could not be imported otherwise: in the module
  # or in its room.
  room = ".".join(module.split(".")[:2])
  if room == "switch_mtf.upstream" or not any(
      is_in(name, LATE) for name in module_imports(MODULES[module])):
    return
  assert comes_first(MODULES[room])


@pytest.mark.parametrize("path", ["run_t5.py", "tests/conftest.py"])
def test_upstream_comes_first_in_commands(path):
  assert comes_first((ROOT / path).read_text())


@pytest.mark.parametrize("folder", ["gin", "gin/models", "gin/layouts",
                                    "gin/runs", "gin/experiments"])
def test_gin_is_no_package(folder):
  # It would replace the gin-config library.
  assert (ROOT / "gin").is_dir()
  assert not (ROOT / folder / "__init__.py").exists()


def test_gin_is_the_library():
  import gin
  assert ROOT / "gin" not in pathlib.Path(gin.__file__).parents


# The tests above can fail.


@pytest.mark.parametrize("module, source", [
    ("switch_mtf.layers.routing", "import switch_mtf.training.hooks"),
    ("switch_mtf.layers.routing", "from switch_mtf import training"),
    ("switch_mtf.layers.routing", "def f():\n  import switch_mtf.planning"),
    ("switch_mtf.dims", "from switch_mtf.layers import routing"),
    ("switch_mtf.upstream", "import switch_mtf.dims"),
    ("switch_mtf.training.hooks", "import tasks.names"),
    ("switch_mtf.training.hooks", "from switch_mtf.checkpoints import names"),
    ("tasks.names", "from switch_mtf.dims import MoeDims"),
])
def test_finds_wrong_imports(module, source):
  assert len(wrong_imports(module, source)) == 1


@pytest.mark.parametrize("source", [
    "import mesh_tensorflow as mtf\nmtf.reshape = None",
    "from mesh_tensorflow.transformer import utils\nutils.run += 1",
    "def f():\n  import sys\n  sys.modules['x'] = 1",
    "import t5.models\nsetattr(t5.models, 'x', 1)",
    "import t5.models\ndel t5.models.x",
])
def test_finds_patches(source):
  assert len(list(patched(source))) == 1


def test_own_attributes_are_no_patch():
  assert list(patched("import sys\nself.x = 1\ny = sys.path\nd[1] = 2")) == []
