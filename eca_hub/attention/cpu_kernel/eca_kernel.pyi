"""The compiled part of ECA. Addresses are of numbers that stay where they are during the call: float32, but in maps."""

def rescale(
    x: int,
    weight: int,
    y: int,
    mean: int,
    gate: int,
    num_images: int,
    num_channels: int,
    num_positions: int,
    kernel_size: int,
    is_channels_last: bool,
    is_bfloat16: bool,
    num_threads: int,
    /,
) -> None: ...
def slopes(
    dy: int,
    x: int,
    weight: int,
    mean: int,
    gate: int,
    dx: int,
    dweight: int,
    num_images: int,
    num_channels: int,
    num_positions: int,
    kernel_size: int,
    is_channels_last: bool,
    is_bfloat16: bool,
    num_threads: int,
    /,
) -> None: ...
