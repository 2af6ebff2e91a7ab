"""Pictures to learn from. `Scenes` is drawn, not downloaded; `oracle` reads a picture back into words."""

from course.data.scenes import Scenes

__all__ = ["Scenes"]
