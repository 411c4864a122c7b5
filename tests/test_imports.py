"""Who may import whom: the table of design.md, section 2."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "switch_mtf"

# The first entry that a module's name starts with says what it may import of
# ours: modules, or packages with all that is in them. Imports go down only.
# Anyone may import upstream, which comes first.
ALLOWED = {
    "switch_mtf.upstream.late_imports": [],
    "switch_mtf.upstream": ["switch_mtf.upstream"],
    "switch_mtf.errors": [],
    "switch_mtf.gin_files": [],
    "switch_mtf.mesh_errors": ["switch_mtf.dims"],
    "switch_mtf.dims": ["switch_mtf.errors"],
    "switch_mtf.kernels": ["switch_mtf.dims", "switch_mtf.kernels"],
    "switch_mtf.layers": [
        "switch_mtf.errors", "switch_mtf.dims", "switch_mtf.kernels",
        "switch_mtf.layers"],
    "switch_mtf.training": [
        "switch_mtf.errors", "switch_mtf.dims", "switch_mtf.gin_files",
        "switch_mtf.kernels", "switch_mtf.layers", "switch_mtf.mesh_errors",
        "switch_mtf.training"],
    "switch_mtf.comparison": [
        "switch_mtf.errors", "switch_mtf.gin_files", "switch_mtf.training",
        "switch_mtf.comparison"],
    "switch_mtf.distillation": [
        "switch_mtf.dims", "switch_mtf.errors", "switch_mtf.gin_files",
        "switch_mtf.kernels", "switch_mtf.layers", "switch_mtf.training",
        "switch_mtf.comparison", "switch_mtf.distillation"],
    "switch_mtf.checkpoints": [
        "switch_mtf.dims", "switch_mtf.gin_files", "switch_mtf.layers",
        "switch_mtf.checkpoints"],
    "switch_mtf.planning.__main__": [
        "switch_mtf.gin_files", "switch_mtf.planning",
        "switch_mtf.training.guards"],
    "switch_mtf.planning": [
        "switch_mtf.dims", "switch_mtf.gin_files", "switch_mtf.layers",
        "switch_mtf.mesh_errors", "switch_mtf.planning"],
    "switch_mtf.doctor": [],
    "switch_mtf": [
        "switch_mtf.dims", "switch_mtf.kernels", "switch_mtf.layers"],
    "tasks": ["tasks"],
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


def is_in(name, packages):
  return any(name == p or name.startswith(p + ".") for p in packages)


def wrong_imports(module, source):
  """What `module` imports of ours and may not."""
  allowed = next(v for k, v in ALLOWED.items() if is_in(module, [k]))
  ours = [name for name in imports(source)
          if is_in(name, ["switch_mtf", "tasks"])]
  return [name for name in ours if not is_in(name, allowed)
          and not is_in(name, ["switch_mtf.upstream"])
          and name != "switch_mtf.__version__"]


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


MODULES = dict(modules("switch_mtf")) | dict(modules("tasks"))


def test_modules_are_found():
  assert {"switch_mtf", "switch_mtf.dims", "switch_mtf.upstream",
          "switch_mtf.layers.switch_ffn", "switch_mtf.training",
          "tasks"} <= set(MODULES)


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_down(module):
  assert wrong_imports(module, MODULES[module]) == []


@pytest.mark.parametrize(
    "module", [m for m in LAYERS if f"switch_mtf.layers.{m}" in MODULES])
def test_inside_layers(module):
  # "from switch_mtf.layers import x" and "from switch_mtf.layers.x import y".
  prefix = "switch_mtf.layers."
  found = {name.removeprefix(prefix).split(".")[0]
           for name in imports(MODULES[prefix + module])
           if name.startswith(prefix)}
  assert found <= set(LAYERS[module])


@pytest.mark.parametrize(
    "module", [m for m in MODULES if m.startswith("switch_mtf")])
def test_only_compat_patches_upstream(module):
  found = list(patched(MODULES[module]))
  # The second does so for the first, which says what and why.
  if module in ("switch_mtf.upstream", "switch_mtf.upstream.late_imports"):
    assert found
  else:
    assert found == []


def test_only_compat_puts_off_imports():
  assert [module for module, source in MODULES.items()
          if "switch_mtf.upstream.late_imports" in imports(source)] == [
              "switch_mtf.upstream"]


def test_compat_comes_first():
  # Before anything that imports mesh_tensorflow, which could not be imported.
  for path in (ROOT / "run_t5.py", ROOT / "tests" / "conftest.py",
               PACKAGE / "__init__.py"):
    names = [n for n in imports(path.read_text())
             if n.split(".")[0] not in ("importlib", "os", "sys")]
    assert is_in(names[0], ["switch_mtf.upstream"]), path


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
    ("switch_mtf.layers.routing", "def f():\n  from switch_mtf import model"),
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
