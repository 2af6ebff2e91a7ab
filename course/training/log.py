"""What a run says while it trains: a line for people, log.jsonl for programs, TensorBoard for those who ask for it."""

import json
from pathlib import Path

from course import files
from course.errors import TrainingError, UsageError
from course.training.progress import Progress


class Log:
    """with Log(folder, "latent model", state) as log: log.step(used, state, loss, lr, {"psnr": 31.2})

    Every tenth step is written down. Lines from behind the point where a run goes on are dropped: they will come again.
    """

    every = 10

    def __init__(self, folder: Path, title: str, state: dict, quiet: bool = False, write: bool = True, tensorboard: bool = False,
                 peak_flops: float | None = None, flops_per_image: float | None = None):
        self.path, self.write = folder / "log.jsonl", write
        self.bar, self.file, self.board = Progress(title, quiet), None, None
        self.begun = (state["images"], state["seconds"])
        self.efficiency = flops_per_image / peak_flops if peak_flops and flops_per_image else None
        if write:
            self._open(state["step"])
        if write and tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                raise UsageError("TensorBoard is not installed: pip install -e '.[train]', or leave out --tensorboard") from None
            self.board = SummaryWriter(folder / "tensorboard", purge_step=state["step"])

    def _open(self, step: int) -> None:
        kept = []
        if self.path.exists():
            for line in self.path.read_text().splitlines():
                try:
                    if json.loads(line)["step"] <= step:
                        kept.append(line + "\n")
                except (ValueError, KeyError):                 # the end of a line that was being written
                    break
        files.write_bytes(self.path, "".join(kept).encode())
        self.file = open(self.path, "a")

    def __enter__(self):
        self.bar.__enter__()
        return self

    def step(self, done: float, state: dict, loss: float, lr: float, figures: dict[str, float]) -> None:
        images, seconds = state["images"] - self.begun[0], state["seconds"] - self.begun[1]
        speed = {"images_per_second": images / max(seconds, 1e-9)}
        if self.efficiency:
            speed["mfu"] = self.efficiency * speed["images_per_second"]
        self.bar.update(done, loss=loss, **figures, **speed)
        if state["step"] % self.every or not self.write:
            return
        line = {"step": state["step"], "images": state["images"], "seconds": round(state["seconds"], 2), "loss": loss, "lr": lr}
        try:
            self.file.write(json.dumps(line | figures | speed) + "\n")
            self.file.flush()
        except OSError as error:
            raise TrainingError(f"cannot write {self.path}: {error.strerror or error}") from error
        if self.board:
            for name, value in (line | figures | speed).items():
                if name not in ("step", "images", "seconds"):
                    self.board.add_scalar(name, value, state["step"])

    def __exit__(self, *error):
        self.bar.__exit__(*error)
        if self.file:
            self.file.close()
        if self.board:
            self.board.close()
