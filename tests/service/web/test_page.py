"""The page at /, in a real Chromium, against a real process.

With ECA_PAGE_SCREENSHOT=FILE a test writes the page as it explains a sample by the model that the service has by
default; the image of the README was made so:

    ECA_PAGE_SCREENSHOT=.github/page.png pytest -m slow -n 0 tests/service/web -k screenshot
"""

import ast
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

import eca_hub
from tests.conftest import save_tiny_detector
from tests.service.server_process import Served, served

playwright = pytest.importorskip("playwright.sync_api", reason="pip install -e '.[dev]'")

playwright.expect.set_options(timeout=30_000)

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed: apt-get install chromium"),
]
HOSTILE = "<img src=x onerror=\"document.title='hacked'\">"
HOSTILE_TEXTS = [
    HOSTILE,
    "<svg onload=\"document.title='hacked'\"><a href=\"javascript:document.title='hacked'\">x</a></svg>",
    "</script><script>document.title='hacked'</script>",
    "javascript:document.title='hacked'",
    "<iframe srcdoc=\"<script>parent.document.title='hacked'</script>\"></iframe>",
    "right-to-left \u202egpj.exe\u202c and an isolate \u2067 that is never closed",
    "NUL \0, escape \x1b[2J, a line\nfeed and \u2028",
    "\U0001f469\u200d\U0001f469\u200d\U0001f467 emoji, and Z\u0338\u0321\u034d" + "\u0348" * 50,
    "A" * 10_000,
]


def save(folder: Path, labels: tuple[str, ...]) -> Path:
    torch.manual_seed(len(labels))
    image = eca_hub.ImageConfig(32, 32, crop=0.875)
    config = eca_hub.ModelConfig("resnet20", "eca", labels=labels, image=image)
    return eca_hub.save_pretrained(eca_hub.create_model("eca_resnet20", num_classes=len(labels)), folder, config=config)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("page")
    save(folder / "first", ("cat", "dog", HOSTILE))
    save(folder / "second", ("apple", "pear"))
    save_tiny_detector(folder / "third")
    names = [word for name in ("first", "second", "third") for word in ("--model", str(folder / name))]
    with served(*names, "--explain", "true", "--deadline_ms", "300000") as running:
        running.wait_until_ready(within_s=300)
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as run:
        arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync"]
        browser = run.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield browser
        browser.close()


@pytest.fixture
def page(service: Served, browser: Any) -> Iterator[Any]:
    """A page without errors: whatever the console or a script complains of fails the test."""
    context = browser.new_context(viewport={"width": 1000, "height": 1200}, color_scheme="light")
    page = context.new_page()
    complaints: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.goto(f"{service.url}/")
    playwright.expect(page.locator("#model option")).to_have_count(3)
    yield page
    expected = re.compile("status of 4|ERR_UPLOAD_FILE_CHANGED")
    assert [text for text in complaints if not expected.search(text)] == []
    context.close()


def choose(page: Any, *paths: Path) -> None:
    page.set_input_files("#files", [str(path) for path in paths])


@pytest.fixture
def image_file(tmp_path: Path) -> Path:
    source = next(Path(eca_service_folder()).glob("optimize/images/*.jpg"))
    return Path(shutil.copy(source, tmp_path / "a photo.jpg"))


def eca_service_folder() -> Path:
    import eca_service

    return Path(eca_service.__file__).parent


def test_an_uploaded_image_gets_bars_a_timing_and_labels_that_are_only_text(page: Any, image_file: Path) -> None:
    choose(page, image_file)
    card = page.locator(".result")
    playwright.expect(card.locator(".bars li")).to_have_count(3)
    assert sorted(card.locator(".bars .label").all_inner_texts()) == sorted(["cat", "dog", HOSTILE])
    assert page.title() == "eca-hub: try a model"
    assert "batch of 1" in card.locator(".timing").inner_text()


def test_several_images_are_classified_and_the_newest_is_first(page: Any, image_file: Path, tmp_path: Path) -> None:
    other = Path(shutil.copy(image_file, tmp_path / "other.jpg"))
    choose(page, image_file, other)
    playwright.expect(page.locator("#status")).to_have_text("2 images done.")
    playwright.expect(page.locator(".result .bars li")).to_have_count(6)
    assert page.locator(".result h3").all_inner_texts() == ["other.jpg", "a photo.jpg"]
    page.get_by_role("button", name="Clear").click()
    playwright.expect(page.locator(".result")).to_have_count(0)
    playwright.expect(page.locator("#empty")).to_be_visible()


def test_several_images_are_sent_at_once_and_each_is_shown_before_its_response(page: Any, image_file: Path) -> None:
    held: list[Any] = []
    page.route("**/v1/classify?*", lambda route: held.append(route))
    choose(page, *[Path(shutil.copy(image_file, image_file.with_name(f"{number}.jpg"))) for number in range(7)])
    playwright.expect(page.locator('.result[aria-busy="true"]')).to_have_count(7)
    while len(held) < 5:
        page.evaluate("0")
    page.route("**/v1/classify?*", lambda route: route.continue_())
    for route in held:
        route.continue_()
    playwright.expect(page.locator("#status")).to_have_text("7 images done.")


FULL = {"error": {"code": "overloaded", "message": "Full.", "hint": "", "request_id": "1"}}


def refuse(page: Any, route_pattern: str, times: int) -> None:
    """Let the first requests of a route find the service full."""
    left = iter(range(times))

    def handle(route: Any) -> None:
        is_full = next(left, None) is not None
        route.fulfill(status=429, json=FULL, headers={"Retry-After": "1"}) if is_full else route.continue_()

    page.route(route_pattern, handle)


def test_an_image_that_is_refused_because_the_service_is_full_is_sent_again(page: Any, image_file: Path) -> None:
    refuse(page, "**/v1/classify?*", times=2)
    choose(page, image_file)
    playwright.expect(page.locator("#status")).to_have_text("1 image done.")


def test_an_explanation_that_is_refused_because_the_service_is_full_is_asked_for_again(
    page: Any, image_file: Path
) -> None:
    refuse(page, "**/v1/explain?*", times=2)
    choose(page, image_file)
    page.locator(".explain").click()
    playwright.expect(page.locator(".gates figure")).to_have_count(9)
    playwright.expect(page.locator(".result .error")).to_be_hidden()


def test_a_file_can_be_dropped_anywhere_and_what_is_no_file_is_refused(page: Any) -> None:
    drop = """async ([path, text]) => {
        const data = new DataTransfer();
        if (path) data.items.add(new File([await (await fetch(path)).blob()], "dropped.jpg", {type: "image/jpeg"}));
        if (text) data.setData("text/uri-list", text);
        const event = new DragEvent("drop", {dataTransfer: data, bubbles: true, cancelable: true});
        document.querySelector("footer").dispatchEvent(event);
        return event.defaultPrevented;
    }"""
    assert page.evaluate(drop, ["static/samples/papaya.jpg", None]), "else the browser leaves the page"
    playwright.expect(page.locator("#status")).to_have_text("1 image done.")
    assert page.evaluate(drop, [None, "https://example.org/cat.jpg"])
    playwright.expect(page.locator("#status.error")).to_contain_text("not a file")


def test_hostile_text_of_every_origin_is_only_text(page: Any, image_file: Path) -> None:
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.on("dialog", lambda dialog: pytest.fail(dialog.message))
    scores = [{"label": text, "score": 0.1} for text in HOSTILE_TEXTS]
    timing = {"decode": 1.0, "queue": 1.0, "engine": 1.0, "total": 3.0}
    answer = {"predictions": scores, "timing_ms": timing, "batch_size": 1, "model": HOSTILE, "revision": HOSTILE}
    error = {"message": HOSTILE_TEXTS[1], "hint": HOSTILE_TEXTS[2], "request_id": HOSTILE_TEXTS[5]}

    def rename(route: Any) -> None:
        models = route.fetch().json()["models"]
        renamed = [model | {"id": text} for model, text in zip(models, HOSTILE_TEXTS, strict=False)]
        route.fulfill(json={"models": renamed})

    page.route("**/v1/models", rename)
    page.route("**/v1/classify?*", lambda route: route.fulfill(json=answer))
    page.reload()
    playwright.expect(page.locator("#model option")).to_have_count(3)
    send = """async (names) => {
        const bytes = await (await fetch("static/samples/papaya.jpg")).blob();
        const data = new DataTransfer();
        for (const name of names) data.items.add(new File([bytes], name, {type: "image/jpeg"}));
        document.body.dispatchEvent(new DragEvent("drop", {dataTransfer: data, bubbles: true}));
    }"""
    page.evaluate(send, HOSTILE_TEXTS)
    playwright.expect(page.locator("#status")).to_have_text(f"{len(HOSTILE_TEXTS)} images done.")
    # Of 10,000 characters the first are shown, and all of them in the tooltip.
    shown = [text if len(text) <= 80 else text[:79] + "\u2026" for text in HOSTILE_TEXTS]
    texts = "nodes => nodes.map(node => node.textContent)"
    label = page.locator(".result").first.locator(".bars .label")
    assert label.evaluate_all(texts) == shown
    assert label.last.get_attribute("title") == HOSTILE_TEXTS[-1]
    names = page.locator(".result h3").evaluate_all(texts)
    assert [name.replace(":", "/") for name in reversed(names)] == [text.replace(":", "/") for text in shown]
    page.unroute("**/v1/classify?*")
    page.route("**/v1/classify?*", lambda route: route.fulfill(status=422, json={"error": error}))
    page.evaluate(send, ["refused.jpg"])
    playwright.expect(page.locator(".result .error").first).to_contain_text("<svg onload")
    for name in page.get_by_role("tab").all_inner_texts():
        page.get_by_role("tab", name=name, exact=True).click()
    assert page.title() == "eca-hub: try a model"
    foreign = "script, svg, iframe, a, object, embed, [onerror], [onload]"
    assert page.locator("#results").locator(foreign).count() == 0
    assert page.locator("#results img").count() == len(HOSTILE_TEXTS) + 1, "the chosen images"
    assert all(url.startswith((page.url, "blob:")) for url in requests), requests
    page.set_viewport_size({"width": 360, "height": 740})
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_code_of_the_page_shows_what_it_does_for_any_file_name(page: Any, tmp_path: Path) -> None:
    names = ["it's a \\ \u202egpj.jpg", "two\nlines.jpg", "plain $HOME `id`.jpg"]
    for name in names:
        shutil.copy(next(Path(eca_service_folder()).glob("web/samples/*.jpg")), tmp_path / name)
        choose(page, tmp_path / name)
        playwright.expect(page.locator("#status")).to_have_text("1 image done.")
        page.get_by_role("tab", name="curl").click()
        code = page.locator("#code").inner_text()
        assert "\u202e" not in code
        assert len(code.splitlines()) == 2
        command = f'curl() {{ printf %s "$2"; }}; {code}'
        ran = subprocess.run(
            ["bash", "-c", command], capture_output=True, text=True, check=True, env={"LC_ALL": "C.UTF-8"}
        )
        assert ran.stdout == f"@{name}"
        page.get_by_role("tab", name="Python").click()
        line = page.locator("#code").inner_text().splitlines()[-1]
        assert ast.literal_eval(line[line.index('predict("') + len("predict(") : line.rindex(", top_k")]) == name


def test_a_response_of_something_else_and_a_key_that_cannot_be_sent_get_a_sentence(page: Any, image_file: Path) -> None:
    page.route("**/v1/classify?*", lambda route: route.fulfill(body="<h1>Log in to the network</h1>"))
    choose(page, image_file)
    playwright.expect(page.locator(".result .error")).to_contain_text("not from this service")
    page.evaluate("document.getElementById('key-row').hidden = false")
    page.fill("#api-key", "clé \U0001f511")
    page.press("#api-key", "Enter")
    playwright.expect(page.locator("#status.error")).to_contain_text("characters that are not allowed")


def test_a_dropped_image_and_a_pasted_image_are_classified(page: Any, image_file: Path) -> None:
    page.evaluate(
        """async ([name]) => {
            const bytes = await (await fetch("static/samples/papaya.jpg")).blob();
            for (const [type, target, key] of [["drop", "#drop", "dataTransfer"], ["paste", "body", "clipboardData"]]) {
                const data = new DataTransfer();
                data.items.add(new File([bytes], `${type}.jpg`, {type: "image/jpeg"}));
                const event = type === "drop" ? new DragEvent(type, {dataTransfer: data, bubbles: true})
                    : new ClipboardEvent(type, {clipboardData: data, bubbles: true});
                document.querySelector(target).dispatchEvent(event);
            }
        }""",
        [image_file.name],
    )
    playwright.expect(page.locator(".result .timing").filter(has_text="batch of")).to_have_count(2)
    assert set(page.locator(".result h3").all_inner_texts()) == {"drop.jpg", "paste.jpg"}


def test_a_sample_is_one_click_and_its_license_another(page: Any) -> None:
    page.locator("#samples button").first.click()
    playwright.expect(page.locator(".result .bars li")).to_have_count(3)
    page.get_by_role("link", name="MIT license").click()
    playwright.expect(page.locator("body")).to_contain_text("Copyright (c) 2019 Marcus Klasson")


def test_a_sample_that_cannot_be_fetched_gets_a_sentence(page: Any) -> None:
    status = page.locator("#status.error")
    page.route("**/static/samples/papaya.jpg", lambda route: route.fulfill(status=404))
    page.get_by_role("button", name="Sample: papaya").click()
    playwright.expect(status).to_contain_text("The sample cannot be fetched.")
    page.evaluate("document.getElementById('status').textContent = ''")
    page.evaluate("void (window.fetch = () => Promise.reject(new TypeError('The service is down.')))")
    page.get_by_role("button", name="Sample: papaya").click()
    playwright.expect(status).to_contain_text("The sample cannot be fetched.")
    playwright.expect(page.locator(".result")).to_have_count(0)


def test_a_browser_that_does_not_allow_copying_gets_a_sentence(page: Any) -> None:
    refuse_to_copy = "navigator.clipboard.writeText = () => Promise.reject(new DOMException('no', 'NotAllowedError'))"
    page.evaluate(f"void ({refuse_to_copy})")
    page.get_by_role("button", name="Copy").click()
    playwright.expect(page.locator("#status.error")).to_contain_text("does not allow this page to copy")


def test_the_steps_of_a_request_are_a_strip_and_words(page: Any, image_file: Path) -> None:
    choose(page, image_file)
    timing = page.locator(".result .timing")
    playwright.expect(timing.locator("li")).to_have_count(6)
    words = timing.locator("li").all_inner_texts()
    assert [text.split()[0] for text in words[:4]] == ["decode", "queue", "engine", "total"]
    shares = timing.locator(".strip span").evaluate_all("parts => parts.map(part => Number(part.style.flexGrow))")
    assert [f"{share:.1f}" for share in shares] == [text.split()[1] for text in words[:3]]


@pytest.mark.parametrize("number", ["2", "2.5"])
def test_the_classes_to_show_are_an_option(number: str, page: Any, image_file: Path) -> None:
    page.fill("#top-k", number)
    choose(page, image_file)
    playwright.expect(page.locator(".result .bars li")).to_have_count(2)


def test_all_images_of_a_selection_are_sent_as_it_was_chosen(page: Any, image_file: Path, tmp_path: Path) -> None:
    held: list[Any] = []
    page.route("**/v1/classify?*", lambda route: held.append(route))
    first = page.locator("#model").input_value()
    choose(page, *(Path(shutil.copy(image_file, tmp_path / f"{number}.jpg")) for number in range(6)))
    playwright.expect(page.locator(".result")).to_have_count(6)
    with page.expect_request("**/v1/classify?*") as sixth:
        page.locator("#model").select_option(index=1)
        page.fill("#top-k", "1")
        held.pop(0).fulfill(status=422, json=FULL)
    assert f"model={first}&" in f"{sixth.value.url}&"
    assert "top_k=5" in sixth.value.url or "top_k=3" in sixth.value.url


def test_a_file_that_was_changed_since_it_was_chosen_is_named_as_the_reason(page: Any, image_file: Path) -> None:
    choose(page, image_file)
    playwright.expect(page.locator(".explain")).to_be_visible()
    image_file.write_bytes(image_file.read_bytes() + b"more")
    page.locator(".explain").click()
    playwright.expect(page.locator(".result .error")).to_contain_text("The file has changed or is gone.")


def test_a_file_that_is_no_image_shows_the_message_and_the_hint(page: Any, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no image at all")
    choose(page, tmp_path / "broken.png")
    error = page.locator(".result .error")
    playwright.expect(error).to_be_visible()
    message, hint, request = filter(None, error.inner_text().splitlines())
    assert min(len(message), len(hint)) > 20
    assert request.startswith("Request "), "what the operator finds in the log"
    playwright.expect(page.locator("#status")).to_have_text("1 image failed.")
    assert page.locator(".result .image").inner_text() == ""
    playwright.expect(page.locator(".result .image img")).to_be_hidden()


def test_another_model_is_a_choice_of_the_picker(page: Any, image_file: Path) -> None:
    page.select_option("#model", index=1)
    choose(page, image_file)
    playwright.expect(page.locator(".result .bars li")).to_have_count(2)
    assert set(page.locator(".bars .label").all_inner_texts()) == {"apple", "pear"}


def test_what_is_shown_stays_while_another_model_is_loading(page: Any, image_file: Path) -> None:
    def add_one(route: Any) -> None:
        response = route.fetch()
        models = response.json()["models"]
        route.fulfill(response=response, json={"models": [*models, {"id": "acme/next", "state": "loading"}]})

    page.route("**/v1/models", add_one)
    page.reload()
    playwright.expect(page.locator("#model option")).to_have_count(4)
    choose(page, image_file)
    status = page.locator("#status")
    playwright.expect(status).to_have_text("1 image done.")
    with page.expect_response("**/v1/models"):
        """The page asks again every second."""
    with page.expect_response("**/v1/models"):
        """The response before this one has been shown."""
    playwright.expect(status).to_have_text("1 image done.")


def test_a_model_that_is_updating_can_be_chosen_and_one_that_is_loading_cannot(page: Any) -> None:
    def change(route: Any) -> None:
        response = route.fetch()
        [first, *others] = response.json()["models"]
        loading = {"id": "acme/next", "state": "loading"}
        route.fulfill(response=response, json={"models": [first | {"state": "updating"}, *others, loading]})

    page.route("**/v1/models", change)
    page.reload()
    playwright.expect(page.locator("#model option")).to_have_count(4)
    playwright.expect(page.locator("#model option").first).to_be_enabled()
    playwright.expect(page.locator("#model option").last).to_be_disabled()
    playwright.expect(page.locator("#model option").last).to_have_text("acme/next (loading)")


def serve_chosen_model_as(page: Any, state: str) -> None:
    """Let /v1/models give the first model, which is the chosen one, this state."""

    def change(route: Any) -> None:
        response = route.fetch()
        [first, *others] = response.json()["models"]
        first = {"id": first["id"], "state": state} if state == "loading" else first | {"state": state}
        route.fulfill(response=response, json={"models": [first, *others]})

    page.unroute("**/v1/models")
    page.route("**/v1/models", change)


def test_while_the_chosen_model_is_loading_again_images_and_explanations_get_a_sentence_and_the_page_waits_for_it(
    page: Any, image_file: Path
) -> None:
    serve_chosen_model_as(page, "updating")
    page.reload()
    choose(page, image_file)
    playwright.expect(page.locator("#status")).to_have_text("1 image done.")
    serve_chosen_model_as(page, "loading")
    playwright.expect(page.locator("#model option").first).to_contain_text("(loading)")
    page.locator(".explain").click()
    playwright.expect(page.locator(".result .error")).to_contain_text("The model is not ready.")
    choose(page, image_file)
    playwright.expect(page.locator("#status")).to_have_text("1 image failed.")
    playwright.expect(page.locator(".result .error").first).to_contain_text("The model is not ready.")
    serve_chosen_model_as(page, "ready")
    playwright.expect(page.locator("#model option").first).to_be_enabled()
    choose(page, image_file)
    playwright.expect(page.locator("#status")).to_have_text("1 image done.")
    page.locator(".explain:visible").last.click()
    playwright.expect(page.locator(".gates figure")).to_have_count(9)


def test_an_explanation_shows_the_gates_of_each_attention_and_an_overlay(page: Any, image_file: Path) -> None:
    choose(page, image_file)
    page.locator(".explain").click()
    playwright.expect(page.locator(".gates figure")).to_have_count(9)
    assert "stage 1" in page.locator(".gates figcaption").first.inner_text()
    box, image = page.locator(".overlay").bounding_box(), page.locator(".image img").bounding_box()
    # The network sees the central 0.875 of the shorter side.
    assert box["height"] / min(image["width"], image["height"]) == pytest.approx(0.875, abs=0.03)
    assert box["x"] + box["width"] / 2 == pytest.approx(image["x"] + image["width"] / 2, abs=2)
    page.get_by_role("button", name="Heat map").click()
    playwright.expect(page.locator(".overlay")).to_be_hidden()


def test_the_overlay_of_a_model_that_sees_the_whole_image_in_a_border_covers_it(page: Any, tmp_path: Path) -> None:
    Image.new("RGB", (400, 200), "teal").save(tmp_path / "wide.png")

    def change(route: Any) -> None:
        response = route.fetch()
        models = [each | {"crop_mode": "border"} for each in response.json()["models"]]
        route.fulfill(response=response, json={"models": models})

    page.route("**/v1/models", change)
    page.reload()
    playwright.expect(page.locator("#model option").first).to_be_attached()
    choose(page, tmp_path / "wide.png")
    page.locator(".explain").click()
    playwright.expect(page.locator(".gates figure")).to_have_count(9)
    box, image = page.locator(".overlay").bounding_box(), page.locator(".image img").bounding_box()
    assert image["width"] == pytest.approx(2 * image["height"], abs=2)
    assert [box["width"], box["height"]] == pytest.approx([0.875 * image["width"]] * 2, abs=2)


def test_the_models_are_asked_for_again_after_a_failure_while_one_is_loading(page: Any) -> None:
    num_asked = 0

    def change(route: Any) -> None:
        nonlocal num_asked
        num_asked += 1
        if num_asked == 2:
            route.fulfill(status=422, json=FULL)
            return
        response = route.fetch()
        models = response.json()["models"]
        loading = [{"id": "acme/next", "state": "loading"}] if num_asked == 1 else []
        route.fulfill(response=response, json={"models": [*models, *loading]})

    page.route("**/v1/models", change)
    page.reload()
    playwright.expect(page.locator("#model option")).to_have_count(4)
    playwright.expect(page.locator("#model option")).to_have_count(3)
    assert num_asked == 3


def test_the_keyboard_focus_goes_from_the_explain_button_to_the_heat_map_and_the_end_is_announced(
    page: Any, image_file: Path
) -> None:
    choose(page, image_file)
    playwright.expect(page.locator(".explain")).to_be_visible()
    page.locator(".explain").press("Enter")
    playwright.expect(page.get_by_role("button", name="Heat map")).to_be_focused()
    playwright.expect(page.get_by_role("status")).to_have_text("Explained.")
    playwright.expect(page.locator(".explain")).to_be_hidden()


def test_an_explanation_that_fails_keeps_the_keyboard_focus_and_can_be_asked_for_again(
    page: Any, image_file: Path
) -> None:
    page.route("**/v1/explain?*", lambda route: route.fulfill(status=422, json=FULL))
    choose(page, image_file)
    playwright.expect(page.locator(".explain")).to_be_visible()
    page.locator(".explain").press("Enter")
    playwright.expect(page.locator(".result .error")).to_be_visible()
    playwright.expect(page.locator(".explain")).to_be_focused()
    page.unroute("**/v1/explain?*")
    page.keyboard.press("Enter")
    playwright.expect(page.locator(".gates figure")).to_have_count(9)


CORNERS = """image => {
    const canvas = document.createElement("canvas"), context = canvas.getContext("2d");
    const [width, height] = [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
    context.drawImage(image, 0, 0);
    const at = (x, y) => [...context.getImageData(x, y, 1, 1).data].slice(0, 3).map(value => value > 127);
    return [[width, height], at(4, 4), at(width - 5, 4), at(4, height - 5), at(width - 5, height - 5)];
}"""


def corners(image: Image.Image) -> list[list[Any]]:
    """The size of an image and the colors of its corners."""
    pixels_HW3 = np.asarray(image.convert("RGB"))
    return [list(image.size), *((pixels_HW3[y, x] > 127).tolist() for y in (4, -5) for x in (4, -5))]


def test_an_image_is_shown_upright_whatever_its_format_and_exif_orientation(page: Any, tmp_path: Path) -> None:
    stored = Image.new("RGB", (64, 32), "blue")
    for color, box in (("red", (0, 0, 32, 16)), ("lime", (32, 0, 64, 16)), ("yellow", (0, 16, 32, 32))):
        stored.paste(color, box)
    formats: dict[str, dict[str, Any]] = {"jpeg": {"quality": 95}, "png": {}, "webp": {"lossless": True}}
    upright = {}
    for orientation in range(1, 9):
        exif = stored.getexif()
        exif[0x0112] = orientation
        for name, options in formats.items():
            path = tmp_path / f"{orientation}.{name}"
            stored.save(path, exif=exif, **options)
            upright[path] = corners(ImageOps.exif_transpose(stored))
        head, length, rest = (tmp_path / f"{orientation}.png").read_bytes().partition(b"\0\0\0\x1aeXIf")
        late = tmp_path / f"{orientation}, EXIF last.png"
        late.write_bytes(head + rest[30:-12] + length + rest[:30] + rest[-12:])
        upright[late] = upright[path]
    choose(page, *upright)
    playwright.expect(page.locator("#status")).to_have_text(f"{len(upright)} images done.")
    names = page.locator(".result h3").all_inner_texts()
    shown = [image.evaluate(CORNERS) for image in page.locator(".result img").all()]
    assert dict(zip(names, shown, strict=True)) == {path.name: corners for path, corners in upright.items()}


def test_the_lines_for_programs_name_this_model_and_this_image(page: Any, image_file: Path) -> None:
    choose(page, image_file)
    playwright.expect(page.locator(".result .bars li")).to_have_count(3)
    code = page.locator("#code")
    assert "--data-binary @'a photo.jpg'" in code.inner_text()
    page.get_by_role("tab", name="curl").press("ArrowRight")
    assert "Classifier.from_pretrained(" in code.inner_text()
    page.get_by_role("tab", name="InferenceClient").click()
    assert 'image_classification("a photo.jpg")' in code.inner_text()
    page.get_by_role("tab", name="JavaScript").click()
    assert "/v1/classify?model=" in code.inner_text()


def detect(page: Any, image_file: Path, min_score: str = "0.05") -> Any:
    """Show an image to the detector; return its card once the objects are drawn."""
    page.select_option("#model", index=2)
    page.fill("#min-score", min_score)
    choose(page, image_file)
    card = page.locator(".result").first
    playwright.expect(card.locator(".overlay.drawing")).to_be_visible(timeout=120_000)
    playwright.expect(card.locator(".timing")).to_contain_text("batch of")
    return card


NUM_DRAWN = """canvas => {
    const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
    return data.filter((value, place) => place % 4 === 3 && value > 0).length;
}"""


def test_a_detector_has_its_own_option_and_its_objects_are_listed_and_drawn(page: Any, image_file: Path) -> None:
    playwright.expect(page.locator("#min-score")).to_be_hidden()
    card = detect(page, image_file)
    playwright.expect(page.locator("#top-k")).to_be_hidden()
    labels = card.locator(".bars .label").all_inner_texts()
    assert labels
    assert set(labels) <= {"bar", "disk"}
    assert card.locator(".overlay").evaluate(NUM_DRAWN) > 100
    assert card.locator(".overlay").bounding_box() == card.locator(".image img").bounding_box()
    assert f"{len(labels)} object" in card.locator("img").get_attribute("alt")
    playwright.expect(card.locator(".explain")).to_be_hidden()


def test_an_image_without_objects_says_so(page: Any, image_file: Path) -> None:
    card = detect(page, image_file, "1")
    assert card.locator(".bars").inner_text() == "Nothing found."
    assert card.locator(".overlay").evaluate(NUM_DRAWN) == 0


def test_the_lines_for_programs_are_those_of_a_detector(page: Any, image_file: Path) -> None:
    detect(page, image_file, "0.25")
    code = page.locator("#code")
    assert "/v1/detect?model=" in code.inner_text()
    assert "min_score=0.25" in code.inner_text()
    page.get_by_role("tab", name="Python").click()
    assert "eca_hub.Detector.from_pretrained(" in code.inner_text()
    page.get_by_role("tab", name="InferenceClient").click()
    assert 'object_detection("a photo.jpg", threshold=0.25)' in code.inner_text()
    page.get_by_role("tab", name="JavaScript").click()
    assert "const { detections }" in code.inner_text()
    page.select_option("#model", index=0)
    playwright.expect(code).to_contain_text("const { predictions }")


@pytest.mark.skipif("ECA_PAGE_SCREENSHOT" not in os.environ, reason="ECA_PAGE_SCREENSHOT names no file")
def test_a_screenshot_is_written_on_request(browser: Any) -> None:
    with served("--explain", "--deadline_ms", "300000") as running:
        running.wait_until_ready(within_s=300)
        context = browser.new_context(viewport={"width": 1200, "height": 900}, color_scheme="light")
        page = context.new_page()
        page.goto(f"{running.url}/")
        page.get_by_role("button", name="Sample: papaya").click()
        playwright.expect(page.locator(".result .timing")).to_contain_text("batch of", timeout=120_000)
        page.locator(".explain").click()
        playwright.expect(page.locator(".gates figure").first).to_be_visible(timeout=120_000)
        # The times of the machine that takes the screenshot say nothing.
        page.evaluate("document.activeElement.blur(); document.querySelector('.timing').hidden = true")
        file = Path(os.environ["ECA_PAGE_SCREENSHOT"])
        page.screenshot(path=file, full_page=True)
        context.close()
    # Few colors are enough for a page, and the file becomes a third as large.
    Image.open(file).convert("RGB").quantize(128).save(file, optimize=True)


def test_dark_follows_the_system_and_the_button(service: Served, browser: Any) -> None:
    context = browser.new_context(color_scheme="dark")
    page = context.new_page()
    page.goto(f"{service.url}/")
    background = "getComputedStyle(document.body).backgroundColor"
    assert page.evaluate(background) == "rgb(22, 22, 26)"
    page.get_by_role("button", name="Dark").click()
    assert page.evaluate(background) == "rgb(255, 255, 255)"
    context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(service: Served, browser: Any, image_file: Path, scheme: str) -> None:
    from axe_playwright_python.sync_playwright import Axe

    context = browser.new_context(color_scheme=scheme)
    page = context.new_page()
    page.goto(f"{service.url}/")
    playwright.expect(page.locator("#model option")).to_have_count(3)
    choose(page, image_file)
    page.locator(".explain").click()
    playwright.expect(page.locator(".gates figure")).to_have_count(9)
    detect(page, image_file)
    # Playwright evaluates the script through the debugger, to which the page's Content-Security-Policy does not apply.
    violations = Axe().run(page).response["violations"]
    assert [(each["id"], each["impact"]) for each in violations if each["impact"] in ("serious", "critical")] == []
    context.close()


def test_on_a_phone_nothing_is_wider_than_the_screen(service: Served, browser: Any, image_file: Path) -> None:
    context = browser.new_context(viewport={"width": 360, "height": 740})
    page = context.new_page()
    page.goto(f"{service.url}/")
    playwright.expect(page.locator("#model option")).to_have_count(3)
    choose(page, image_file)
    playwright.expect(page.locator(".result .bars li")).to_have_count(3)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    context.close()


def test_a_service_with_keys_asks_for_one(tmp_path: Path, browser: Any, image_file: Path) -> None:
    save(tmp_path / "model", ("cat", "dog"))
    with served("--model", str(tmp_path / "model"), ECA_API_KEYS="a-key-of-sixteen-chars") as running:
        while running.client.get("/readyz").status_code != 200:
            assert running.process.poll() is None
        context = browser.new_context()
        page = context.new_page()
        page.goto(f"{running.url}/")
        playwright.expect(page.locator("#api-key")).to_be_visible()
        page.fill("#api-key", "not-the-key")
        page.press("#api-key", "Enter")
        playwright.expect(page.locator("#status.error")).not_to_be_empty()
        page.fill("#api-key", "a-key-of-sixteen-chars")
        page.press("#api-key", "Enter")
        playwright.expect(page.locator("#model option")).to_have_count(1)
        playwright.expect(page.locator("#status")).to_be_empty()
        choose(page, image_file)
        playwright.expect(page.locator(".result .bars li")).to_have_count(2)
        code = page.locator("#code")
        playwright.expect(code).to_contain_text('-H "Authorization: Bearer $ECA_API_KEY"')
        for tab in ("curl", "InferenceClient", "JavaScript"):
            page.get_by_role("tab", name=tab).click()
            assert "a-key-of-sixteen-chars" not in code.inner_text()
            assert "KEY" in code.inner_text()
        context.close()


def test_the_policy_allows_nothing_from_elsewhere(service: Served) -> None:
    response = service.client.get("/")
    assert response.headers.get_list("content-security-policy") == [
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ]
    for path in ("/", "/static/app.js", "/static/style.css"):
        assert "//cdn" not in service.client.get(path).text
