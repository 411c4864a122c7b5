"""The picture of which core holds what."""

import mesh_tensorflow as mtf
import pytest
from helpers.plans import GROUP, planned

import tasks  # noqa: F401
from switch_mtf.planning import (
  picture,
)


@pytest.fixture(autouse=True)
def gin_is_clean(clean_gin):
  """Every plan starts from T5's defaults."""


def test_picture_shows_who_holds_what(tmp_path):
  # Figure 9, expert and model and data: 2 x 2 cores, each with an own slice of
  # the experts; tokens are the same along "model".
  plan = planned(GROUP, mesh_shape="model:2,batch:2",
                 layout="batch:batch,experts:batch,d_ff:model")
  impl = mtf.MeshImpl(plan.configuration.mesh_shape,
                      plan.configuration.layout_rules)
  shapes = picture._shapes(plan)
  assert picture.slices(impl, shapes["experts' weights"]).tolist() == [
      [0, 1], [2, 3]]
  assert picture.slices(impl, shapes["tokens"]).tolist() == [[0, 1], [0, 1]]
  path = tmp_path / "mesh.png"
  picture.draw(plan, str(path))
  assert path.read_bytes().startswith(b"\x89PNG")
