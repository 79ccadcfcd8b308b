"""The demo with a camera: the scene, the finder, and the whole of it as a user starts it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import ndshare
from ndshare.demo import camera, scene

pytestmark = pytest.mark.once


@pytest.fixture(scope="module")
def small() -> scene.Scene:
    """Return the small scene."""
    return scene.make(quick=True)


def test_path_stays_inside_and_moves(small) -> None:
    """Every frame lies within the scene, at a multiple of the step, and the camera moves."""
    places = scene.path(small, 50)
    assert places.shape == (50, 2)
    assert (places % scene.STEP == 0).all()
    assert places.min() >= 0
    assert places.max() + small.edge <= len(small.pixels)
    assert len(np.unique(places, axis=0)) > 25


def test_finder_finds_every_place(small) -> None:
    """The correlation is highest exactly where the frame was taken."""
    finder = scene.Finder(small)
    frame = np.empty((small.edge, small.edge), np.float32)
    for place in scene.path(small, 12):
        small.frame(place, frame)
        assert finder.find(frame) == tuple(place)


def test_wrong_numbers_are_noticed(small) -> None:
    """The comparison at the end of the demo can fail."""
    places = scene.path(small, 3)
    found = places.copy()
    found[1] += scene.STEP
    assert not camera._are_right(camera.Trail(None, None, found), places)
    film = np.zeros((3, 1, 1), np.uint8)
    assert not camera._is_right(film, small, places)


def test_failing_consumer_ends_the_camera(small) -> None:
    """A camera whose frames nobody takes any more is told so."""
    queue = ndshare.Queue(2)
    places = scene.path(small, 5)
    queue.put((3, 0.0, np.zeros(2)))
    with pytest.raises(AssertionError, match="frame 3 came in place of 0"):
        next(camera.frames_of(queue))
    with pytest.raises(ndshare.ShutDown):
        camera.play(small, places, (queue,))
    queue.close()


def test_demo_runs_as_a_program(run_ndshare, tmp_path: Path) -> None:
    """Both processes get every frame, and the picture is there."""
    done = run_ndshare("demo camera --quick --frames 10 --out", tmp_path)
    assert "10 places found exactly" in done.stdout
    assert "99 %" in done.stdout
    assert (tmp_path / "ndshare-camera.png").stat().st_size > 10_000
