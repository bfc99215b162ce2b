"""The page, in a browser, with a service that has workers."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from zipfile import ZipFile

import httpx
import pytest
from PIL import Image
from playwright.sync_api import Browser, ConsoleMessage, Locator, Page, expect, sync_playwright

from app.access.api_keys import new_key
from app.main import create_app
from app.settings import ApiSettings
from models.checkpoints.catalog import ClassesCard
from tests.e2e.conftest import Service
from tests.support.cards import write_card_of
from tests.support.server import serve
from worker.jobs.keys import png_key

CHROMIUM = shutil.which("chromium")
QUIET = [
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
# The machine may be busy.
expect.set_options(timeout=60_000)
pytestmark = [
    pytest.mark.browser,
    pytest.mark.timeout(400),
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium; Debian has it"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(
            executable_path=CHROMIUM, args=QUIET, chromium_sandbox=False
        )


@pytest.fixture
def opened(browser: Browser) -> Iterator[Callable[[str], Page]]:
    """A function that opens a URL in a tab of its own.

    The test fails if the page has an error or breaks its content security policy.
    """
    context = browser.new_context(viewport={"width": 1100, "height": 1400})
    faults: list[str] = []

    def on_console(message: ConsoleMessage) -> None:
        if "Content Security Policy" in message.text:
            faults.append(message.text)

    def opened(url: str) -> Page:
        page = context.new_page()
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", on_console)
        page.goto(url)
        return page

    yield opened
    context.close()
    assert faults == []


@pytest.fixture
def page(service: Service, opened: Callable[[str], Page]) -> Page:
    return opened(str(service.http.base_url))


def sample(page: Page, **fields: object) -> Locator:
    """Fill the form in, send it, and return the job that it becomes."""
    page.select_option("[name=model]", "tiny")
    for name, value in fields.items():
        field = page.locator(f"#new [name={name}]")
        if name in ("model", "sampler", "priority", "variance"):
            field.select_option(str(value))
        else:
            field.fill(str(value))
    with page.expect_response(lambda answer: answer.request.method == "POST") as accepted:
        page.click("#new button")
    # A browser keeps no body of an answer that says no-store.
    job = accepted.value.headers["location"].rpartition("/")[2]
    return page.locator(f"#job-{job}")


def shown(image: Locator) -> bytes:
    """Return the RGBA values of an image, as the browser decoded it."""
    script = """image => {
        const [width, height] = [image.naturalWidth, image.naturalHeight];
        const canvas = new OffscreenCanvas(width, height).getContext("2d");
        canvas.drawImage(image, 0, 0);
        return Array.from(canvas.getImageData(0, 0, width, height).data);
    }"""
    return bytes(image.evaluate(script))


def rgba(png: bytes) -> bytes:
    """Return the RGBA values of a PNG."""
    return Image.open(BytesIO(png)).convert("RGBA").tobytes()


def test_a_posted_job_makes_its_pictures_appear(page: Page, service: Service) -> None:
    job = sample(page, count=3, steps=20, seed=7, sampler="ddim", eta=0.5)
    expect(job).to_have_class("finished")
    expect(job.locator("h2")).to_have_text("3 × tiny")
    expect(job.locator(".recipe")).to_have_text("ddim (eta 0.5), 20 steps, seed 7, interactive")
    expect(job.locator(".tile.finished")).to_have_count(3)
    newest = service.http.get("/v1/jobs").json()["jobs"][0]
    pngs = service.pngs(newest["id"])
    pictures = [rgba(pngs[index]) for index in range(3)]
    assert [shown(image) for image in job.locator("img").all()] == pictures
    assert len(set(pictures)) == 3


def test_a_picture_is_enlarged_and_saved_and_all_of_them_as_a_zip(
    page: Page, service: Service, tmp_path: Path
) -> None:
    job = sample(page, count=2, steps=3, seed=1, start=5)
    job.locator(".tile.finished").nth(1).click()
    dialog = page.get_by_role("dialog", name="image 6 of seed 1: ddpm, 3 steps")
    expect(dialog).to_contain_text("image 6 of seed 1: ddpm, 3 steps")
    with page.expect_download() as download:
        dialog.locator(".save").click()
    download.value.save_as(tmp_path / "one.png")
    dialog.get_by_text("Close").click()
    expect(dialog).to_be_hidden()
    with page.expect_download() as download:
        job.locator(".archive").click()
    download.value.save_as(tmp_path / "all.zip")
    with ZipFile(tmp_path / "all.zip") as archive:
        assert archive.read(archive.namelist()[1]) == (tmp_path / "one.png").read_bytes()
        assert len(archive.namelist()) == 2


def test_a_running_job_shows_its_images_and_can_be_cancelled(page: Page) -> None:
    job = sample(page, count=4, steps=1000)
    expect(job.locator(".tile:not(.finished) img[src]").first).to_be_visible(timeout=30_000)
    expect(job.locator(".told")).to_contain_text("%, 0 of 4 images")
    job.locator(".cancel").click()
    expect(job).to_have_class("cancelled")
    expect(job.locator("progress")).to_be_hidden()


def test_a_screen_reader_hears_what_belongs_to_which_job(page: Page) -> None:
    job = sample(page, count=4, steps=1000, seed=8)
    article = page.get_by_role("article", name="4 × tiny").first
    expect(article).to_have_id(str(job.get_attribute("id")))
    expect(job.get_by_role("status")).to_have_text("running")
    expect(job.get_by_role("progressbar", name="Progress")).to_be_visible()
    for action in ("Again", "Cancel", "Delete"):
        button = job.get_by_role("button", name=f"{action} 4 × tiny", exact=True)
        expect(button).to_have_accessible_description(re.compile("1000 steps, seed 8"))
    job.get_by_role("button", name="Cancel").click()
    expect(job.get_by_role("status")).to_have_text("cancelled")


def test_a_recipe_can_be_used_again_and_a_job_deleted(page: Page) -> None:
    questions: list[str] = []
    first = sample(page, count=1, steps=9, seed=3, sampler="ddpm", variance="fixed_large")
    page.fill("[name=seed]", "")
    first.locator(".again").click()
    values = [page.input_value(f"[name={name}]") for name in ("steps", "seed", "variance")]
    assert values == ["9", "3", "fixed_large"]
    expect(first.locator(".tile.finished")).to_have_count(1)
    page.once("dialog", lambda dialog: (questions.append(dialog.message), dialog.dismiss()))
    first.locator(".delete").click()
    page.once("dialog", lambda dialog: dialog.accept())
    with page.expect_response(lambda answer: answer.request.method == "DELETE"):
        first.locator(".delete").click()
    expect(first).to_have_count(0)
    assert questions == ["Delete 1 × tiny and its pictures?"]


def test_a_model_offers_the_variances_that_it_has(page: Page) -> None:
    for model, variances in (("tiny", 2), ("fashion-mnist-28", 3)):
        page.select_option("[name=model]", model)
        # and one for what the model chooses
        expect(page.locator("[name=variance] option")).to_have_count(1 + variances)
    options = {"sampler": "ddpm", "variance": "analytic", "priority": "bulk"}
    job = sample(page, model="fashion-mnist-28", count=1, **options)
    expect(job.locator(".recipe")).to_contain_text("ddpm (analytic)")
    job.locator(".delete").click()
    # It has no image, so the page asks nothing.
    expect(job).to_have_count(0)


def test_a_hidden_option_does_not_keep_a_job_from_being_posted(page: Page) -> None:
    first = sample(page, count=1, steps=2, sampler="ddpm")
    page.select_option("[name=sampler]", "ddim")
    page.fill("[name=eta]", "2")
    page.select_option("[name=sampler]", "ddpm")
    with page.expect_response(lambda answer: answer.request.method == "POST") as accepted:
        page.click("#new button")
    assert accepted.value.status == 202
    # Nobody chose a variance: the model does, by the number of steps.
    assert "variance" not in accepted.value.request.post_data_json
    page.select_option("[name=sampler]", "ddim")
    assert page.locator("[name=eta]").evaluate(
        "field => field.willValidate && field.validity.rangeOverflow"
    )
    first.locator(".again").click()
    expect(page.locator("[name=eta]")).to_be_hidden()
    expect(page.locator("[name=variance]")).to_be_enabled()


def test_a_refusal_is_shown_in_the_services_words(page: Page) -> None:
    expect(page.locator("#new [name=steps]")).not_to_have_value("")
    page.fill("[name=start]", "4294967295")
    page.click("#new button")
    expect(page.locator("#problem")).to_contain_text("start=4294967295")
    page.fill("[name=start]", "0")
    # It is more than the model's steps, so the browser itself refuses it.
    page.fill("[name=steps]", "1001")
    page.click("#new button")
    assert page.locator("[name=steps]").evaluate("field => field.validity.rangeOverflow")


def test_the_page_waits_while_the_service_is_away_and_goes_on(page: Page, service: Service) -> None:
    expect(page.locator("#service")).to_contain_text("2 workers")
    page.route("**/v1/**", lambda route: route.abort())
    expect(page.locator("#service")).to_have_text("The service does not answer.")
    job = service.post(count=1, steps=2, seed=123456789)
    page.unroute("**/v1/**")
    expect(page.locator("#service")).to_contain_text("2 workers")
    expect(page.locator("article").first).to_contain_text("seed 123456789")
    service.finished(job["id"])


def test_an_answer_that_is_not_the_services_is_shown_and_the_page_goes_on(page: Page) -> None:
    expect(page.locator("#service")).to_contain_text("2 workers")
    page.route(
        "**/v1/jobs?**", lambda route: route.fulfill(content_type="text/html", body="<p>Log in")
    )
    expect(page.locator("#service")).to_have_text("What answers is not the service, or breaks off.")
    page.unroute("**/v1/jobs?**")
    expect(page.locator("#service")).to_contain_text("2 workers")


def test_a_picture_that_is_refused_at_first_comes_later(page: Page) -> None:
    page.route("**/images/0", lambda route: route.fulfill(status=503))
    with page.expect_response("**/images/0"):
        job = sample(page, count=1, steps=2, seed=4)
    expect(job).to_have_class("finished")
    # By then the page no longer polls the job.
    page.wait_for_timeout(1500)
    page.unroute("**/images/0")
    expect(job.locator(".tile.finished")).to_have_count(1)


def test_expired_pictures_say_so_and_are_offered_no_more(page: Page, service: Service) -> None:
    ended = service.post(count=2, steps=2)["id"]
    service.finished(ended)
    job = page.locator(f"#job-{ended}")
    expect(job.locator(".archive")).to_be_visible()
    service.redis.delete(png_key(ended))
    page.reload()
    expect(job.locator(".tile")).to_have_text(["expired", "expired"])
    expect(job.get_by_role("button", name="image 1 has expired")).to_be_visible()
    expect(job.locator(".archive")).to_be_hidden()


def test_a_picture_that_expires_before_it_is_fetched_says_so(page: Page) -> None:
    page.route("**/images/*", lambda route: route.fulfill(status=410))
    job = sample(page, count=2, steps=2)
    expect(job.locator(".tile")).to_have_text(["expired", "expired"])
    expect(job.locator(".archive")).to_be_hidden()


def test_the_reference_has_every_call_tries_it_and_loads_nothing_from_elsewhere(
    service: Service, opened: Callable[[str], Page]
) -> None:
    base = str(service.http.base_url)
    job = service.post(count=1, steps=2)["id"]
    service.finished(job)
    page = opened(f"{base}/docs")
    document = service.http.get("/openapi.json").json()
    described = [*document["paths"].values(), *document["webhooks"].values()]
    expect(page.locator(".opblock")).to_have_count(sum(map(len, described)))
    path = page.locator("[data-path='/v1/jobs/{job_id}/images/{index}']")
    call = page.locator(".opblock", has=path)
    call.locator(".opblock-summary-control").click()
    call.get_by_role("button", name="Try it out").click()
    call.get_by_placeholder("job_id").fill(job)
    call.get_by_placeholder("index").fill("0")
    call.get_by_role("button", name="Execute").click()
    expect(call.locator("img")).to_be_visible()
    png = service.pngs(job)[0]
    assert shown(call.locator("img")) == rgba(png)
    loaded = page.evaluate("performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert all(url.removeprefix("blob:").startswith(f"{base}/") for url in loaded), loaded


def test_the_form_shows_the_sheet_of_the_chosen_model(
    service: Service, opened: Callable[[str], Page], tmp_path: Path
) -> None:
    write_card_of("drawn", tmp_path)
    write_card_of("plain", tmp_path, default=False)
    Image.new("RGB", (24, 16), (200, 100, 50)).save(tmp_path / "drawn" / "samples.png")
    settings = ApiSettings(redis_url=service.redis_url, models_dir=tmp_path)
    with serve(create_app(settings)) as url:
        page = opened(url)
        sheet = page.locator("#sheet")
        expect(sheet).to_be_visible()
        expect(sheet).to_have_attribute("alt", "samples of drawn")
        assert sheet.evaluate("image => [image.naturalWidth, image.naturalHeight]") == [24, 16]
        page.select_option("[name=model]", "plain")
        expect(sheet).to_be_hidden()


def test_the_form_offers_classes_and_guidance_where_the_model_has_them(
    service: Service, opened: Callable[[str], Page], tmp_path: Path
) -> None:
    names = ("cat", "dog", "frog")
    write_card_of("guided", tmp_path, classes=ClassesCard(count=3, names=names, null=3))
    write_card_of("numbered", tmp_path, default=False, classes=ClassesCard(count=2))
    write_card_of("tiny", tmp_path, default=False)
    settings = ApiSettings(redis_url=service.redis_url, models_dir=tmp_path)
    with serve(create_app(settings)) as url:
        page = opened(url)
        label, guidance = (page.locator(f"#new [name={name}]") for name in ("label", "guidance"))
        page.select_option("[name=model]", "tiny")
        expect(label).to_be_hidden()
        expect(guidance).to_be_hidden()
        page.select_option("[name=model]", "numbered")
        expect(label.locator("option")).to_have_text(["drawn", "0", "1"])
        expect(guidance).to_be_hidden()
        page.select_option("[name=model]", "guided")
        expect(label.locator("option")).to_have_text(["drawn", *names])
        label.select_option("dog")
        guidance.fill("2.5")
        with page.expect_response(lambda answer: answer.request.method == "POST") as accepted:
            page.click("#new button")
        job = accepted.value.headers["location"].rpartition("/")[2]
        expect(page.locator(f"#job-{job} .recipe")).to_contain_text("class 1, guidance 2.5, seed")
        page.locator(f"#job-{job} .again").click()
        expect(label).to_have_value("1")
        expect(guidance).to_have_value("2.5")
        service.http.delete(f"/v1/jobs/{job}")


def test_again_repeats_the_class_of_each_image(
    service: Service, opened: Callable[[str], Page], tmp_path: Path
) -> None:
    write_card_of("guided", tmp_path, classes=ClassesCard(count=3, null=3))
    settings = ApiSettings(redis_url=service.redis_url, models_dir=tmp_path)
    with serve(create_app(settings)) as url:
        body = {"model": "guided", "count": 3, "labels": [2, 0, 2], "guidance": 1.5}
        first = httpx.post(f"{url}/v1/jobs", json=body).json()["id"]
        page = opened(url)
        page.locator(f"#job-{first} .again").click()
        label = page.locator("#new [name=label]")
        expect(label.locator("option:checked")).to_have_text("as in that job")
        with page.expect_response(lambda answer: answer.request.method == "POST") as accepted:
            page.click("#new button")
        second = accepted.value.headers["location"].rpartition("/")[2]
        images = httpx.get(f"{url}/v1/jobs/{second}").json()["images"]
        assert [image["label"] for image in images] == [2, 0, 2]
        page.locator("#new [name=count]").fill("4")
        page.locator("#new [name=count]").blur()
        expect(label.locator("option:checked")).to_have_text("drawn")
        for job in (first, second):
            service.http.delete(f"/v1/jobs/{job}")


def test_a_service_with_keys_gets_the_key_of_the_page(
    service: Service, opened: Callable[[str], Page]
) -> None:
    key, entry = new_key("ann")
    settings = ApiSettings(
        redis_url=service.redis_url, models_dir=service.models_dir, api_keys=entry
    )
    with serve(create_app(settings)) as url:
        page = opened(url)
        expect(page.locator("#key")).to_be_visible()
        # A header cannot hold it.
        page.fill("[name=key]", f"{key}\u200b")
        page.click("#key button")
        expect(page.locator("#problem")).to_contain_text("perhaps unseen")
        assert page.evaluate("sessionStorage.length") == 0
        for given in ("wrong", f" {key} "):
            expect(page.locator("#key")).to_be_visible()
            page.fill("[name=key]", given)
            page.click("#key button")
        expect(page.locator("#key")).to_be_hidden()
        expect(page.locator("#problem")).to_have_text("")
        job = sample(page, count=2, steps=5)
        expect(job.locator(".tile.finished")).to_have_count(2)
        assert page.locator("article").count() == 1, "another owner's jobs"
        page.close()
