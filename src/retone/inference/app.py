"""The web app: talk to a run, compare it with its base, vote blindly, read the report, train.

Nothing is fetched from outside: the pages use the system's fonts, and Gradio's own files come with
its package.
"""

from __future__ import annotations

import html
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import gradio as gr

from retone.chat_template import RowRejected
from retone.conversation import Message
from retone.errors import RetoneError
from retone.inference.desk import Desk, Opened, answers
from retone.inference.sampling import Sampling
from retone.inference.service import Busy
from retone.inference.train_page import frame, train_page

FONTS = ["-apple-system", "BlinkMacSystemFont", "Segoe UI", "Roboto", "Ubuntu", "sans-serif"]
MONO = ["ui-monospace", "Menlo", "Consolas", "monospace"]
TUNED, BASE = "tuned", "base"
CSS = """
.gradio-container {
  max-width: 60rem !important; width: 100% !important; margin: 0 auto !important;
}
.about p { color: #6a6761; }
.dark .about p { color: #a6a39b; }
progress { appearance: none; height: 0.5rem; border-radius: 4px; overflow: hidden; }
progress, progress::-webkit-progress-bar { background: var(--border-color-primary); }
progress::-webkit-progress-value { background: #c2410c; }
progress::-moz-progress-bar { background: #c2410c; }
.frame iframe { width: 100%; height: 80vh; border: 0; border-radius: 6px; background: #fff; }
footer { display: none !important; }
:focus-visible { outline: 2px solid var(--body-text-color) !important; outline-offset: 2px; }
"""
Turn = dict[str, Any]


def theme() -> gr.themes.Base:
    """The look of the report: grey, one strong colour, system fonts."""
    return gr.themes.Base(
        primary_hue=gr.themes.colors.orange, neutral_hue=gr.themes.colors.stone,
        font=FONTS, font_mono=MONO,
    ).set(
        button_primary_background_fill="#c2410c", button_primary_text_color="#ffffff",
        button_primary_background_fill_hover="#9a3412",
    )  # fmt: skip


def build_app(desk: Desk, chosen: str | None) -> gr.Blocks:
    """The pages.

    Args:
        desk: what they can ask for.
        chosen: the run that is open at first; None opens the page that trains.
    """
    names = desk.runs()
    with gr.Blocks(title="retone", analytics_enabled=False) as app:
        with gr.Row():
            gr.Markdown("# retone")
            run = gr.Dropdown(names, value=chosen, label="Run", elem_id="run", min_width=160)
        about = gr.Markdown(elem_id="about", elem_classes="about")
        with gr.Tabs(selected="chat" if chosen else "train") as tabs:
            with gr.Tab("Chat", id="chat"):
                settings, examples = _chat_page(desk, run)
            with gr.Tab("Side by side", id="compare"):
                _compare_page(desk, run, settings)
            with gr.Tab("Blind vote", id="vote"):
                _vote_page(desk, run, settings)
            with gr.Tab("Report", id="report"):
                report = gr.HTML(elem_id="report", elem_classes="frame")
            with gr.Tab("Train", id="train"):
                trained = train_page(desk)

        def show(name: str | None) -> tuple[Any, ...]:
            if not name:
                return "No run yet. Drop a file under Train.", gr.update(samples=[]), "", ""
            opened = _opened(desk, name)
            samples = [[text] for text in opened.examples]
            report = opened.report()
            shown = frame(report) if report else "There is no report yet."
            return opened.about(), gr.update(samples=samples), shown, opened.served.system

        def refresh(name: str | None) -> Any:
            return gr.update(choices=desk.runs(), value=name)

        outputs = [about, examples, report, settings[-1]]
        app.load(refresh, run, run).then(show, run, outputs)
        run.change(show, run, outputs)
        trained.then(
            lambda: (
                gr.update(choices=desk.runs(), value=desk.job().name),
                gr.Tabs(selected="chat"),
            ),
            None,
            [run, tabs],
        )
    app.queue(default_concurrency_limit=8, max_size=64)
    return app


def _chat_page(desk: Desk, run: gr.Dropdown) -> tuple[list[Any], gr.Dataset]:
    """One conversation; the settings that all pages share, and the examples."""
    talk = _chatbot("Conversation", "talk")
    text, send, stop = _asking("chat", "Say something")
    with gr.Row():
        again = gr.Button("Retry", size="sm", elem_id="chat-retry")
        clear = gr.Button("New conversation", size="sm", elem_id="chat-clear")
    examples = gr.Dataset(components=[text], samples=[], label="Examples", elem_id="examples")
    who = gr.Radio([TUNED, BASE], value=TUNED, label="Who answers", elem_id="who")
    with gr.Accordion("How it answers", open=False, elem_id="settings"):
        settings = [
            gr.Slider(0, 2, value=0, step=0.05, label="Temperature", elem_id="temperature",
                      info="0 takes the likeliest token, always"),
            gr.Slider(0.05, 1, value=1, step=0.05, label="Top-p", elem_id="top-p"),
            gr.Slider(0, 200, value=0, step=1, label="Top-k (0: all)", elem_id="top-k"),
            gr.Slider(1, 1024, value=128, step=1, label="Longest answer (tokens)",
                      elem_id="max-new-tokens"),
            gr.Slider(1, 2, value=1, step=0.05, label="Repetition penalty", elem_id="penalty"),
            gr.Number(0, precision=0, label="Seed", elem_id="seed"),
            gr.Textbox("", label="System prompt", lines=2, elem_id="system"),
        ]  # fmt: skip

    def say(
        name: str, said: str, history: list[Turn], who: str, *given: Any
    ) -> Iterator[tuple[list[Turn], str]]:
        if not said.strip():
            raise gr.Error("There is nothing to answer yet.", print_exception=False)
        turns = [*history, {"role": "user", "content": said}]
        yield turns, ""
        for (answer,) in _written(desk, name, given, [(turns, who == TUNED)]):
            yield [*turns, {"role": "assistant", "content": answer}], ""

    def retry(
        name: str, history: list[Turn], who: str, *given: Any
    ) -> Iterator[tuple[list[Turn], str]]:
        asked = [at for at, turn in enumerate(history) if turn["role"] == "user"]
        if not asked:
            raise gr.Error("Nothing was asked yet.", print_exception=False)
        said = _text(history[asked[-1]]["content"])
        changed = (*given[:5], int(given[5]) + len(history), given[6])
        yield from say(name, said, history[: asked[-1]], who, *changed)

    asking = [run, text, talk, who, *settings]
    events = [send.click(say, asking, [talk, text]), text.submit(say, asking, [talk, text])]
    events.append(again.click(retry, [run, talk, who, *settings], [talk, text]))
    events.append(
        examples.click(lambda row: row[0], examples, text).then(say, asking, [talk, text])
    )
    stop.click(None, cancels=events)
    clear.click(lambda: ([], ""), None, [talk, text], cancels=events)
    return settings, examples


def _compare_page(desk: Desk, run: gr.Dropdown, settings: list[Any]) -> None:
    """The same words to both models, answered together."""
    gr.Markdown("Both models get the same words; each goes on with its own answers.")
    with gr.Row():
        left = _chatbot("Base", "left")
        right = _chatbot("Tuned", "right")
    text, send, stop = _asking("compare", "Ask both")
    clear = gr.Button("Clear", size="sm", elem_id="compare-clear")

    def say(
        name: str, said: str, before: list[Turn], after: list[Turn], *given: Any
    ) -> Iterator[tuple[Any, ...]]:
        if not said.strip():
            raise gr.Error("There is nothing to answer yet.", print_exception=False)
        asked: Turn = {"role": "user", "content": said}
        both = ([*before, asked], [*after, asked])
        yield *both, ""
        for pair in _written(desk, name, given, [(both[0], False), (both[1], True)]):
            yield *(_with(turns, one) for turns, one in zip(both, pair, strict=True)), ""

    asking = [run, text, left, right, *settings]
    events = [
        send.click(say, asking, [left, right, text]),
        text.submit(say, asking, [left, right, text]),
    ]
    stop.click(None, cancels=events)
    clear.click(lambda: ([], [], ""), None, [left, right, text], cancels=events)


def _vote_page(desk: Desk, run: gr.Dropdown, settings: list[Any]) -> None:
    """Two answers, nobody says whose; which is better?"""
    gr.Markdown(
        "Two answers, one by the base model and one by the tuned one, on sides drawn by lot. "
        "Vote first, then see who wrote which. Votes are kept with the run and shown in its report."
    )
    text, send, stop = _asking("vote", "Ask both")
    with gr.Row():
        sides = [
            gr.Textbox(label="Answer A", lines=6, interactive=False, elem_id="side-a"),
            gr.Textbox(label="Answer B", lines=6, interactive=False, elem_id="side-b"),
        ]
    with gr.Row():
        buttons = [
            gr.Button(label, interactive=False, elem_id=f"vote-{key}")
            for label, key in (("A is better", "a"), ("Equally good", "equal"),
                               ("B is better", "b"))
        ]  # fmt: skip
    outcome = gr.Markdown(elem_id="outcome")
    hidden = gr.State(None)  # question and the tuned model's side, once both have answered

    def ask(name: str, said: str, *given: Any) -> Iterator[tuple[Any, ...]]:
        if not said.strip():
            raise gr.Error("There is nothing to answer yet.", print_exception=False)
        tuned_at = random.randrange(2)
        question: list[Turn] = [{"role": "user", "content": said}]
        sides = [(question, at == tuned_at) for at in range(2)]
        closed = [gr.update(interactive=False)] * 3
        pair = ["", ""]
        yield *pair, *closed, "", None
        for pair in _written(desk, name, given, sides):
            yield *pair, *closed, "", None
        opened = [gr.update(interactive=True)] * 3
        yield *pair, *opened, "", (said, tuned_at)

    def vote(choice: str, name: str, asked: tuple[str, int] | None, a: str, b: str) -> Any:
        if asked is None:
            raise gr.Error("Ask something first.", print_exception=False)
        question, tuned_at = asked
        tally = _tried(lambda: desk.vote(name, question, (a, b), tuned_at, choice))
        reveal = f"{'AB'[tuned_at]} was the tuned model. {tally}"
        return *[gr.update(interactive=False)] * 3, reveal, None

    outputs = [*sides, *buttons, outcome, hidden]
    events = [
        send.click(ask, [run, text, *settings], outputs),
        text.submit(ask, [run, text, *settings], outputs),
    ]
    stop.click(None, cancels=events)
    for button, choice in zip(buttons, ("a", "equal", "b"), strict=True):
        button.click(
            lambda *given, choice=choice: vote(choice, *given),
            [run, hidden, *sides],
            [*buttons, outcome, hidden],
        )


def _chatbot(label: str, name: str) -> gr.Chatbot:
    return gr.Chatbot(
        label=label, elem_id=name, height="45vh", render_markdown=False, buttons=["copy"],
        feedback_options=None,
    )  # fmt: skip


def _asking(page: str, label: str) -> tuple[gr.Textbox, gr.Button, gr.Button]:
    """A line to type in, and the buttons beside it."""
    with gr.Row(equal_height=True):
        text = gr.Textbox(
            "", show_label=False, container=False, placeholder=label, scale=6, min_width=240,
            autofocus=page == "chat", elem_id=f"{page}-text", max_lines=8,
        )  # fmt: skip
        send = gr.Button("Send", variant="primary", min_width=80, elem_id=f"{page}-send")
        stop = gr.Button("Stop", min_width=80, elem_id=f"{page}-stop")
    return text, send, stop


def _opened(desk: Desk, name: str | None) -> Opened:
    if not name:
        raise gr.Error("There is no run yet: drop a file under Train.", print_exception=False)
    opened: Opened = _tried(lambda: desk.open(name))
    return opened


def _tried(function: Any) -> Any:
    """What `function` gives; a known error as a message in the page."""
    try:
        return function()
    except RetoneError as error:
        text = f"{error.problem}: {error.found}. {error.remedy}"
        raise gr.Error(html.escape(text), print_exception=False) from error


def _written(
    desk: Desk, name: str, given: Sequence[Any], sides: Sequence[tuple[Sequence[Turn], bool]]
) -> Iterator[list[str]]:
    """The texts of answers as they grow: one to each conversation, by the tuned model or not."""
    opened = _opened(desk, name)
    sampling, system = _sampling(opened.served.usual, given)
    before = [Message("system", system)] if system else []
    asked = [
        ([*before, *(Message(turn["role"], _text(turn["content"])) for turn in turns)], tuned)
        for turns, tuned in sides
    ]
    try:
        yield from answers(opened.served, asked, sampling)
    except RowRejected as rejected:
        told = f"This cannot be asked: {rejected.detail or rejected.reason}"
        raise gr.Error(html.escape(told), print_exception=False) from None
    except Busy:
        raise gr.Error("Too many are asking; try again.", print_exception=False) from None


def _sampling(usual: Sampling, given: Sequence[Any]) -> tuple[Sampling, str]:
    temperature, top_p, top_k, longest, penalty, seed, system = given
    sampling = replace(
        usual, temperature=float(temperature), top_p=float(top_p), top_k=int(top_k),
        max_new_tokens=int(longest), repetition_penalty=float(penalty), seed=int(seed or 0),
    )  # fmt: skip
    return sampling, str(system or "").strip()


def _with(turns: list[Turn], answer: str) -> list[Turn]:
    return [*turns, {"role": "assistant", "content": answer}]


def _text(content: Any) -> str:
    """The text of a turn, which Gradio gives in pieces."""
    if isinstance(content, str):
        return content
    return "".join(part.get("text", "") for part in content if isinstance(part, dict))
