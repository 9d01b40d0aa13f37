"""The page that trains: drop a file, look at it, start, watch, and go on to the chat."""

from __future__ import annotations

import html
from typing import Any

import gradio as gr
import pandas as pd

from retone.errors import RetoneError
from retone.inference.desk import Choices, Desk, JobState

EVERY = 2.0  # seconds between two looks at a job
ENDINGS = [".csv", ".tsv", ".json", ".jsonl", ".parquet", ".txt", ".md", ".gz", ".zip", ".zst"]
COLOURS = {"training": "#8f8c85", "validation": "#c2410c"}


def train_page(desk: Desk) -> Any:
    """The components; gives the event after which a finished run is to be talked to."""
    gr.Markdown(
        "Drop a file of examples: pairs, questions with answers, or chats. "
        "What was found in it stands below; then start."
    )
    file = gr.File(label="Examples", file_types=ENDINGS, elem_id="train-file", height=120)
    base, method, name, epochs, prompt, answer = _fields(desk.choices())
    fault = gr.Markdown(elem_id="train-fault")
    with gr.Row():
        start = gr.Button("Start training", variant="primary", elem_id="train-start")
        stop = gr.Button("Stop", elem_id="train-stop")
        talk = gr.Button("Talk to it", interactive=False, elem_id="train-talk")
    status = gr.HTML(elem_id="train-status")
    curve = gr.LinePlot(
        x="step", y="loss", color="loss of", color_map=COLOURS, height=220, visible=False,
        elem_id="train-curve",
    )  # fmt: skip
    samples = gr.HTML(elem_id="train-samples")
    page = gr.HTML(elem_id="train-data", elem_classes="frame")

    def look(path: str | None, base: str, prompt: str, answer: str) -> tuple[str, str]:
        if not path:
            return "", ""
        try:
            found, wrong = desk.inspect(path, base, prompt, answer)
        except RetoneError as error:
            return "", _told(error)
        return frame(found), f"**Not trained as it is:** {html.escape(wrong)}" if wrong else ""

    def begin(path: str | None, *given: Any) -> tuple[Any, ...]:
        if not path:
            return "Drop a file first.", *shown(desk.job())
        base, method, prompt, answer, name, epochs = given
        try:
            job = desk.start(path, base, method, prompt, answer, name, epochs or None)
        except RetoneError as error:
            return _told(error), *shown(desk.job())
        return "", *shown(job)

    for changed in (file.change, base.change, prompt.submit, answer.submit):
        changed(look, [file, base, prompt, answer], [page, fault])
    outputs = [status, curve, samples, start, stop, talk]
    given = [file, base, method, prompt, answer, name, epochs]
    start.click(begin, given, [fault, *outputs])
    stop.click(lambda: shown(desk.stop()), None, outputs)
    gr.Timer(EVERY).tick(lambda: shown(desk.job()), None, outputs, show_progress="hidden")
    return talk.click(lambda: None)


def frame(page: str) -> str:
    """A whole page inside another, without access to it."""
    inside = html.escape(page, quote=True)
    return f'<iframe title="page" sandbox="allow-scripts" srcdoc="{inside}"></iframe>'


def _fields(choices: Choices) -> tuple[Any, ...]:
    """Base, method, name, epochs, and the columns of prompts and answers."""
    with gr.Row():
        base = gr.Dropdown(
            [(label, name) for name, label in choices.bases], label="Base model",
            value=choices.bases[0][0], elem_id="train-base",
        )  # fmt: skip
        method = gr.Dropdown(
            [(label, name) for name, label in choices.methods], label="What is trained",
            value=choices.methods[0][0], elem_id="train-method",
        )  # fmt: skip
    with gr.Row():
        name = gr.Textbox(label="Name of the run", value="my-tone", elem_id="train-name")
        epochs = gr.Number(
            label="Epochs (0: as many as suit the data)", value=0, minimum=0,
            elem_id="train-epochs",
        )  # fmt: skip
    with gr.Accordion("Which columns (found by name when left empty)", open=False):
        prompt = gr.Textbox("", label="Column of the prompts", elem_id="train-prompt")
        answer = gr.Textbox("", label="Column of the answers", elem_id="train-answer")
    return base, method, name, epochs, prompt, answer


def shown(job: JobState) -> tuple[Any, ...]:
    """A job as the components show it."""
    running = job.status == "running"
    bar = f'<progress max="1" value="{job.share:.3f}" style="width:100%"></progress>'
    status = f"<p>{html.escape(job.told)}</p>" + (bar if running else "")
    points = pd.DataFrame(list(job.curve), columns=["step", "loss of", "loss"])
    curve = gr.update(value=points, visible=len(points) > 1)
    told = "".join(
        f"<dt>{html.escape(str(one['question']))}</dt>"
        f"<dd>step {int(one['step'])}: {html.escape(str(one['answer']))}</dd>"
        for one in job.samples
    )
    return (
        status,
        curve,
        f"<h3>Answers on the way</h3><dl>{told}</dl>" if told else "",
        gr.update(interactive=not running),
        gr.update(interactive=running),
        gr.update(interactive=job.status == "finished"),
    )


def _told(error: RetoneError) -> str:
    text = f"**{error.problem}**: {error.found}. {error.remedy}"
    return html.escape(text, quote=False)
