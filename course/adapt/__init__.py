"""`course train` for what begins with a whole trained pipeline, `--model`, rather than with nothing: one file a kind.

Each `train` returns the loop's state and what is left for the first process to do: keep what was learned and measure it.
"""

from course.adapt import control, distilled, inversion, low_rank, xl

TRAIN = {"lora": low_rank.train, "controlnet": control.train, "inversion": inversion.train, "xl": xl.train,
         "distill": distilled.train}
