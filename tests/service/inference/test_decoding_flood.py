"""Many large images at once, against a real process: each gets a result or 429, and small images are served."""

import asyncio
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from experiments.bench.clients import ClientPool
from tests.images.image_files import encode
from tests.service.fakes import png
from tests.service.server_process import save_tiny_package, served

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(("path", "number"), [("/v1/classify", 100), ("/v1/explain", 300)])
def test_a_flood_of_large_images_is_refused_and_small_images_are_served(tmp_path: Path, path: str, number: int) -> None:
    large = encode(Image.new("RGB", (3990, 4000), "teal"), "PNG")

    async def scene(url: str) -> tuple[Counter[int], Counter[int]]:
        pool = ClientPool(f"{url}/v1/classify")
        flood = asyncio.gather(*(pool.once(pool.request(large, path=path)) for _ in range(number)))
        small = await pool.closed(2, pool.request(png()), 3.0)
        return Counter(one.status for one in await flood), Counter(one.status for one in small)

    package = save_tiny_package(tmp_path / "model")
    with served("--model", str(package), "--explain", "--deadline_ms", "60000") as service:
        service.wait_until_ready()
        flood, small = asyncio.run(scene(service.url))
    assert set(flood) == {200, 429}
    assert flood[429] > number / 2
    assert set(small) == {200}
