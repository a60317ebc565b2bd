"""The chat page in a headless Chromium, with a server whose answers a test has written."""

import os
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("uvicorn")
from scripted_models import Scripted, loaded_models
from scripted_server import Say, ScriptedEngine, scripted_model

from airllm.server.models import Models
from airllm.server.one_model import OneModel
from airllm.server.run import Server, listen
from airllm.server.settings import ServerSettings

# Looked at by people: CI keeps them.
PICTURES = Path(__file__).parent.parent / "build/screenshots"
SECONDS = 20  # the most that anything takes to appear

MARKDOWN = """A **bold** word, `code` and [a link](https://example.org).

1. first
   - nested
2. second

| name | value |
|------|------:|
| a    | 1     |

```python
print("<b>")
```

<img src=x onerror="document.title='owned'"> [bad](javascript:alert(1))"""


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    try:
        from selenium import webdriver

        driver, browser = shutil.which("chromedriver"), shutil.which("chromium")
        missing = "" if driver and browser else "chromium or its chromedriver is not installed"
    except ModuleNotFoundError:
        missing = "selenium is not installed"
    if missing:
        if os.environ.get("AIRLLM_REQUIRE_BROWSER") == "1":
            pytest.fail(f"AIRLLM_REQUIRE_BROWSER=1, but {missing}")
        pytest.skip(missing)
    options = webdriver.ChromeOptions()
    for option in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1280,860"):
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with webdriver.Chrome(options, webdriver.ChromeService(driver)) as chrome:
        yield chrome


class Page:
    """What a reader of the page sees and does."""

    def __init__(self, chrome: Any, url: str) -> None:
        self.chrome, self.url = chrome, url
        chrome.get(url)
        chrome.execute_script("localStorage.clear(); sessionStorage.clear()")
        self.reload()

    def reload(self) -> None:
        self.chrome.get(self.url)

    def all(self, css: str) -> list[Any]:
        found: list[Any] = self.chrome.find_elements("css selector", css)
        return found

    def one(self, css: str) -> Any:
        """As soon as there is one that is shown."""
        return self.wait(lambda: next((e for e in self.all(css) if e.is_displayed()), None))

    def wait(self, condition: Callable[[], Any]) -> Any:
        from selenium.webdriver.support.wait import WebDriverWait

        return WebDriverWait(self.chrome, SECONDS, poll_frequency=0.02).until(lambda _: condition())

    def click(self, css: str) -> None:
        self.one(css).click()

    def button(self, text: str) -> Any:
        return self.wait(lambda: next((b for b in self.all("button") if b.text == text), None))

    def say(self, text: str) -> None:
        from selenium.webdriver.common.keys import Keys

        self.click("#text")
        self.chrome.switch_to.active_element.send_keys(text, Keys.ENTER)

    def answer(self, number: int = 1) -> Any:
        """The body of an answer that is complete."""
        self.wait(lambda: len(self.all("article.assistant .figures")) >= number)
        self.one("#send")
        return self.all("article.assistant .body")[number - 1]

    def picture(self, name: str) -> None:
        PICTURES.mkdir(parents=True, exist_ok=True)
        self.chrome.save_screenshot(str(PICTURES / f"{name}.png"))

    def errors(self) -> list[str]:
        """What the browser complains of, such as what the content policy has refused."""
        return [entry["message"] for entry in self.chrome.get_log("browser")]


class Served:
    def __init__(self, chrome: Any) -> None:
        self._chrome, self._ends = chrome, []  # type: ignore[var-annotated]

    def __call__(self, *answers: Say | str, **settings: Any) -> tuple[Page, ScriptedEngine]:
        """A server with these answers, and its page."""
        engine = ScriptedEngine(*answers)
        facts = {
            "family": "llama",
            "backend": "cpp",
            "isa": "avx512",
            "threads": 2,
            "plan": {
                "budget_bytes": 1 << 30,
                "total_bytes": 500 << 20,
                "model_bytes": 2 << 30,
                "pinned_layers": [0],
                "streamed_layers": [1, 2, 3],
                "streamed_bytes_per_pass": 1536 << 20,
            },
        }
        model = replace(scripted_model(engine), facts=facts)
        page = self._serve(OneModel(lambda: model), engine.go.set, **settings)
        return page, engine

    def several(self, *models: Scripted) -> Page:
        """A server with these models, and memory for one of them."""

        def let_go() -> None:
            for model in models:
                model.may_load.set()

        return self._serve(loaded_models(*models), let_go)

    def _serve(self, models: Models, let_go: Callable[[], None], **settings: Any) -> Page:
        listener = listen(ServerSettings(port=0))
        server = Server(models, ServerSettings(port=0, **settings), listener)
        ready = threading.Event()
        thread = threading.Thread(target=server.run, args=(lambda _: ready.set(),))
        thread.start()
        self._ends.append(lambda: (let_go(), server.stop(), thread.join(SECONDS)))
        assert ready.wait(SECONDS)
        return Page(self._chrome, f"http://127.0.0.1:{listener.getsockname()[1]}/")

    def close(self) -> None:
        for end in self._ends:
            end()


@pytest.fixture
def served(chromium: Any) -> Iterator[Served]:
    servers = Served(chromium)
    yield servers
    chromium.get("about:blank")  # closes the page's connections
    servers.close()


def test_an_answer_is_shown_as_it_is_meant_and_nothing_in_it_is_markup(served: Served) -> None:
    page, engine = served(f"<think>\nHm.\n</think>\n\n{MARKDOWN}")
    page.say("Show me.")
    body = page.answer()
    assert engine.prompt().startswith("<user>Show me.")
    for css, text in {
        "strong": "bold",
        "p code": "code",
        "ol > li > ul > li": "nested",
        "td.right": "1",
        "figure.code pre": 'print("<b>")',
    }.items():
        assert body.find_element("css selector", css).text == text
    links = [link.get_attribute("href") for link in body.find_elements("css selector", "a")]
    assert links == ["https://example.org/"]
    assert not body.find_elements("css selector", "img")
    assert "onerror" in body.text
    thoughts = body.find_element("css selector", "details")
    assert thoughts.get_attribute("open") is None  # folded once the answer has come
    assert page.errors() == []
    assert "owned" not in page.chrome.title
    page.picture("answer")


def test_an_answer_says_how_fast_it_was_and_what_was_reused(served: Served) -> None:
    page, _ = served("Hello.")
    page.say("Hi")
    page.answer()
    figures = page.one(".figures").text
    assert "6 tokens" in figures
    assert "0 of them reused" in figures


def test_stop_cancels_the_answer_on_the_server(served: Served) -> None:
    page, engine = served(Say("Never.", waits=True))
    page.say("Hi")
    page.wait(lambda: engine.requests)
    page.click("#stop")
    page.wait(lambda: engine.cancelled)
    page.one("#send")


def test_escape_stops_as_well(served: Served) -> None:
    from selenium.webdriver.common.keys import Keys

    page, engine = served(Say("Never.", waits=True))
    page.say("Hi")
    page.wait(lambda: engine.requests)
    page.one("body").send_keys(Keys.ESCAPE)
    page.wait(lambda: engine.cancelled)


def test_an_answer_is_given_anew_in_place_of_the_last(served: Served) -> None:
    page, engine = served("First.", "Second.")
    page.say("Hi")
    assert page.answer().text == "First."
    page.button("Regenerate").click()
    page.wait(lambda: len(engine.requests) == 2)
    assert page.wait(lambda: page.answer().text == "Second.")
    assert engine.prompt(0) == engine.prompt(1)


def test_an_edited_message_drops_what_followed_it(served: Served) -> None:
    from selenium.webdriver.common.keys import Keys

    page, engine = served("One.", "Two.", "Three.")
    page.say("Hi")
    page.answer()
    page.say("And?")
    page.answer(2)
    page.button("Edit").click()  # the first message's
    page.one("article textarea").send_keys(", Ada", Keys.ENTER)
    page.wait(lambda: len(engine.requests) == 3)
    assert page.wait(lambda: page.answer().text == "Three.")
    assert engine.prompt().startswith("<user>Hi, Ada\n<assistant>")
    assert len(page.all("article")) == 2


def test_arrow_up_edits_the_last_message(served: Served) -> None:
    from selenium.webdriver.common.keys import Keys

    page, _ = served("One.")
    page.say("Hi")
    page.answer()
    page.one("#text").send_keys(Keys.ARROW_UP)
    assert page.one("article textarea").get_attribute("value") == "Hi"


def test_the_system_prompt_and_the_sampling_go_with_each_message(served: Served) -> None:
    page, engine = served("Hello.")
    page.click("#open-settings")
    page.one("#system").send_keys("Be brief.")
    page.one("[data-option=temperature]").send_keys("0.25")
    page.one("[data-option=max_tokens]").send_keys("3")
    page.say("Hi")
    assert page.answer().text == "Hel"
    assert engine.prompt().startswith("<system>Be brief.\n<user>Hi")
    assert engine.requests[-1].sampling.temperature == 0.25
    assert "cut off" in page.one(".figures").text


def test_attached_text_files_are_part_of_the_message(served: Served, tmp_path: Path) -> None:
    notes, picture = tmp_path / "notes.md", tmp_path / "picture.png"
    notes.write_text("```\nsome code\n```")
    picture.write_bytes(b"\x89PNG\xff\x00")
    page, engine = served("I see.")
    for path in (notes, picture):
        page.all("#files")[0].send_keys(str(path))
    assert "picture.png is not a text file" in page.wait(lambda: page.one("#notice").text)
    page.say("What is this?")
    page.answer()
    assert "notes.md\n````\n```\nsome code\n```\n````\n\nWhat is this?" in engine.prompt()
    assert page.one("article.user .file").text == "notes.md"


def test_conversations_stay_in_the_browser_until_they_are_deleted(served: Served) -> None:
    page, _ = served("Hello.")
    page.say("Hi there")
    page.answer()
    page.click("#new")
    page.say("Something else")
    page.answer()
    page.reload()
    titles = [button.text for button in page.all("#conversations li button:first-child")]
    assert titles == ["Something else", "Hi there"]
    page.all("#conversations li button:first-child")[1].click()
    assert page.one("article.user .plain").text == "Hi there"
    page.all("#conversations li button.icon")[1].click()
    page.reload()
    assert [row.text.split("\n")[0] for row in page.all("#conversations li")] == ["Something else"]


def test_a_refusal_of_the_server_is_shown(served: Served) -> None:
    page, engine = served("Hello.")
    engine.is_full = True
    page.say("Hi")
    assert "Try again in" in page.wait(lambda: page.one("#notice").text)


def test_an_answer_that_fails_says_why_and_keeps_what_came(served: Served) -> None:
    failing = Say("Half an", error=RuntimeError("the disk is gone"), error_waits=True)
    page, engine = served(failing)
    page.say("Hi")
    page.wait(lambda: "Half an" in page.one("article.assistant .body").text)
    engine.go.set()
    assert "the server failed" in page.one("#notice").text
    assert page.answer().text == "Half an"


def test_a_key_is_asked_for_and_kept_for_the_tab_alone(served: Served) -> None:
    page, _ = served("Hello.", api_keys=("secret",))
    page.one("#key").send_keys("secret")
    page.button("Use it").click()
    page.wait(lambda: "scripted" in page.chrome.title)
    page.say("Hi")
    assert page.answer().text == "Hello."
    assert page.chrome.execute_script("return JSON.stringify(localStorage)").count("secret") == 0


def test_the_machine_is_shown(served: Served) -> None:
    page, _ = served("Hello.")
    page.click("#open-machine")
    figures = page.wait(lambda: "avx512" in page.one("#figures").text and page.one("#figures"))
    assert "1 of 4" in figures.text
    assert "1.5 GiB" in figures.text
    page.say("Hi")
    page.answer()
    page.picture("machine")


def test_the_theme_is_chosen_and_kept(served: Served) -> None:
    page, _ = served("Hello.")
    ground = "return getComputedStyle(document.body).backgroundColor"
    page.click("#theme")
    light = page.chrome.execute_script(ground)
    page.click("#theme")
    dark = page.chrome.execute_script(ground)
    assert light != dark
    page.reload()
    assert page.chrome.execute_script(ground) == dark
    page.say("Hi")
    page.answer()
    page.picture("dark")


def choose(page: Page, name: str) -> None:
    page.one(f"#model option[value='{name}']").click()


def chosen(page: Page) -> str:
    value: str = page.all("#model")[0].get_attribute("value")
    return value


def test_a_model_is_chosen_for_a_conversation_loaded_and_remembered(served: Served) -> None:
    alpha, beta = Scripted("alpha", says=("I am A.",)), Scripted("beta", says=("I am B.",))
    page = served.several(alpha, beta)
    page.errors()  # those of earlier tests
    choose(page, "beta")
    page.wait(lambda: beta.n_loaded)  # before anything is asked
    page.say("Who?")
    assert page.answer().text == "I am B."
    page.click("#new")
    choose(page, "alpha")
    page.say("And you?")
    assert page.answer().text == "I am A."
    page.wait(lambda: "(" not in page.one("#model option[value='alpha']").text)
    page.picture("models")
    page.reload()
    page.wait(lambda: chosen(page) == "alpha")
    page.all("#conversations li button:first-child")[1].click()
    assert page.wait(lambda: chosen(page) == "beta")
    assert page.errors() == []


def test_the_page_says_that_a_model_is_being_loaded(served: Served) -> None:
    alpha, beta = Scripted("alpha"), Scripted("beta")
    beta.may_load.clear()
    page = served.several(alpha, beta)
    choose(page, "beta")
    page.wait(lambda: page.one("#state").text == "Loading beta")
    page.say("Hi")
    page.wait(lambda: page.one("#state").text == "Loading beta")
    page.click("#open-machine")
    page.wait(lambda: "loading" in page.one("#figures").text)
    beta.may_load.set()
    assert page.answer().text == "Hello."


def test_a_model_that_cannot_be_loaded_says_why(served: Served) -> None:
    page = served.several(Scripted("alpha"), Scripted("beta", error=ValueError("the file lies")))
    choose(page, "beta")
    page.wait(lambda: "beta cannot be loaded: the file lies" in page.one("#notice").text)


def test_a_small_screen_has_the_conversations_behind_a_button(served: Served) -> None:
    page, _ = served("Hello.")
    page.chrome.set_window_size(500, 860)
    try:
        page.say("Hi")
        page.answer()
        assert not page.all("#new")[0].is_displayed()
        page.click("#menu")
        page.one("#new")
        page.picture("small")
        scrolls = "return document.documentElement.scrollWidth > innerWidth"
        assert not page.chrome.execute_script(scrolls)
    finally:
        page.chrome.set_window_size(1280, 860)


def test_a_page_of_another_origin_gets_nothing(served: Served) -> None:
    page, engine = served("Hello.")
    url = page.url
    page.chrome.get("data:text/html,<title>hostile</title>")
    asked = """
        const done = arguments[arguments.length - 1];
        const body = JSON.stringify({messages: [{role: "user", content: "Hi"}]});
        const ways = [
            {method: "POST", body, headers: {"Content-Type": "application/json"}},
            {method: "POST", body, mode: "no-cors", headers: {"Content-Type": "text/plain"}},
        ];
        Promise.allSettled(ways.map((way) => fetch(arguments[0], way).then((r) => r.text())))
            .then((all) => done(all.map((one) => one.value ?? "")));
    """
    got = page.chrome.execute_async_script(asked, url + "v1/chat/completions")
    assert got == ["", ""]
    assert engine.requests == []
