import torch

from course import pixels


def test_every_byte_survives_the_round_trip():
    every = torch.arange(256, dtype=torch.uint8)
    values = pixels.to_unit(every)
    assert values[0] == -1 and values[255] == 1
    assert torch.equal(pixels.to_bytes(values), every)


def test_bytes_are_rounded_and_clipped():
    assert pixels.to_bytes(torch.tensor([-3.0, -1.0, 0.0, 0.003, 1.0, 7.0])).tolist() == [0, 0, 128, 128, 255, 255]
