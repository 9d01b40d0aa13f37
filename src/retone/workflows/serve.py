"""`retone serve`: the web app and the OpenAI-compatible API, on this machine alone by default."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from retone import console
from retone.errors import InputError, MachineError
from retone.evaluation.votes import Votes
from retone.models.saving import check_base, require_same_base
from retone.planning import is_loopback
from retone.recipe_file import toml_value
from retone.run_dir import Run, all_runs, find_run, read_json
from retone.workflows import jobs
from retone.workflows.adopt import run_or_adapter
from retone.workflows.hand_over import serve_with_vllm
from retone.workflows.inspect import inspect
from retone.workflows.load import Tuned, load, open_run, sample_questions
from retone.workflows.report import write_report

PASSWORD = "RETONE_PASSWORD"  # keys come from the environment alone
USER = "retone"
DONE = ("finished", "trained")


def serve(
    run: str | None = None,
    *,
    host: str = "127.0.0.1",
    port: int = 7860,
    api_only: bool = False,
    engine: str = "retone",
    adapters: Sequence[str] = (),
    offline: bool = False,
) -> None:
    """Serve until Ctrl-C.

    Args:
        run: a run's directory, name, or latest, or the folder of an adapter; the newest finished
            one when left out.
        host: any other than this machine's own needs a password in the environment.
        port: 0 takes a free one.
        api_only: no pages, only the API.
        engine: retone; or vllm, for many users: its own server takes over, without pages.
        adapters: further ones of the same base for the API, each as NAME=RUN_OR_FOLDER.
        offline: never ask a network.

    Raises:
        InputError: there is no such run, no password for another host, or an adapter that cannot
            be served beside the run.
        MachineError: a package is missing, the port is taken, or the memory is full.
    """
    password = os.environ.get(PASSWORD) or None
    if not is_loopback(host) and not password:
        raise InputError(
            "others can reach this address, so a password is needed",
            f"--host {host}, and {PASSWORD} is not set",
            f"export {PASSWORD}=...   (the app asks for it, with the user name {USER}; "
            "the API takes it as bearer token)",
            "no-password",
        )
    named = [_named(text) for text in adapters]
    if engine == "vllm":
        _refuse_for_vllm(adapters)
        found = run_or_adapter(run or "latest", offline=offline)
        serve_with_vllm(found, host=host, port=port, password=password, offline=offline)
        return
    _require_packages(api_only)
    given = run_or_adapter(run, offline=offline) if run else None
    desk = FrontDesk(given, offline=offline)
    chosen = given.name if given else next(iter(desk.runs()), None)
    if (api_only or named) and not chosen:
        raise InputError(
            "there is no run to serve", "no run is trained yet", "retone run yoda", "unknown-run"
        )
    with _bound(host, port) as listener:
        if chosen:
            desk.open(chosen)
        for name, path in named:
            desk.load_adapter(name, path)
        _serve(desk, chosen, listener, host, password, api_only=api_only)


class FrontDesk:
    """What the app and the API ask for: one run is held at a time, and adapters beside it.

    They are of the run that is open, and go when another one is opened.

    Args:
        given: a run that was named, wherever it is; the others are those of `all_runs`.
        offline: never ask a network.
    """

    def __init__(self, given: Run | None = None, *, offline: bool = False) -> None:
        self._given = given
        self._offline = offline
        self._lock = threading.Lock()
        self._open: tuple[str, Any] | None = None

    def runs(self) -> list[str]:
        """Names of runs that can be talked to, newest first."""
        names = [run.name for run in reversed(all_runs()) if run.status in DONE]
        given = [self._given.name] if self._given and self._given.name not in names else []
        return given + names

    def open(self, name: str) -> Any:
        """The run as `desk.Opened`; another one that was open is closed."""
        from retone.inference.api import Served
        from retone.inference.desk import Opened
        from retone.inference.service import Service

        run = self._find(name)
        with self._lock:
            if self._open is None or self._open[0] != name:
                tuned = load(run, offline=self._offline)
                base = read_json(run.manifest)["base"]
                examples = sample_questions(run, tuned.resolved.recipe)
                service = Service(tuned.engine)
                if self._open is not None:
                    self._open[1].close()
                self._base, self._examples = base, examples
                self._served = Served(
                    service, run.name, base["name"], tuned.sampling, tuned.system or ""
                )
                self._open = name, service
            return Opened(self._served, self._examples, partial(_about, run), partial(_report, run))

    def served(self) -> Any:
        """What the API serves: the run that is open. Raises `api.Refused` where there is none."""
        from retone.inference.api import Refused

        if self._open is None:
            raise Refused(503, "no run is open yet", code="no_model")
        return self._served

    def load_adapter(self, name: str, path: str) -> None:
        """Serve a further adapter of the same base model beside the run.

        A run is asked with its own system prompt; an adapter of another tool becomes a run first,
        on a base that this machine has: nothing is fetched for it.

        Args:
            name: what the API calls it.
            path: a run's directory, its name, its adapter's folder, or one that peft wrote.

        Raises:
            InputError: the name is taken, there is no such run, it has another base, template or
                vocabulary, or the two cannot be mixed; or as `adopt`.
            MachineError: the memory does not hold it.
        """
        from retone.inference.api import Voice

        with self._lock:
            served = self.served()
            if name in served.names:
                raise InputError(
                    "a model of this name is served already",
                    f"{name}; there are {', '.join(served.names)}",
                    "choose another name, or unload that one",
                    "name-taken",
                )
            run = run_or_adapter(path, offline=True)
            tuned = self._beside(run)
            adapter = served.service.load_adapter(run.tuned)
            voice = Voice(adapter, tuned.sampling, tuned.system or "")
            self._served = replace(served, loaded={**served.loaded, name: voice})

    def unload_adapter(self, name: str) -> None:
        """Let an adapter go that `load_adapter` named.

        Raises:
            InputError: there is none (unknown-adapter), or answers of it are not finished
                (adapter-in-use).
        """
        with self._lock:
            served = self.served()
            if name not in served.loaded:
                raise InputError(
                    "there is no adapter of this name to unload",
                    f"{name}; loaded are {', '.join(served.loaded) or 'none'}",
                    "GET /v1/models lists all; the run and its base stay",
                    "unknown-adapter",
                )
            served.service.unload_adapter(served.loaded[name].adapter)
            rest = {other: voice for other, voice in served.loaded.items() if other != name}
            self._served = replace(served, loaded=rest)

    def _beside(self, run: Run) -> Tuned:
        """How a run is asked by the engine that is open; InputError where that is not its own."""
        opened = open_run(run, offline=True)
        check_base(run.tuned, opened.base)
        alone = f"serve it alone: retone serve {run.path}"
        require_same_base(run.name, asdict(opened.base), self._base, alone)
        engine = self._served.service.engine
        changed = engine.template.verify_lock(read_json(run.template_lock))
        if opened.tokenizer.get_vocab() != engine.tokenizer.get_vocab():
            changed.append("its tokenizer has other tokens")
        if changed:
            raise InputError(
                "the run was tuned with another chat template than the one that is open",
                f"{run.name}: {changed[0]}",
                alone,
                "other-template",
            )
        return Tuned(engine, opened.resolved)

    def vote(
        self, name: str, question: str, answers: tuple[str, str], tuned_at: int, choice: str
    ) -> str:
        """Keep a blind vote and draw the report again; the tally as a sentence."""
        run = self._find(name)
        votes = Votes(run.votes)
        votes.add(question, answers, tuned_at, choice)
        if run.status == "finished":
            write_report(run, run.evaluation(), run.report)
        return str(votes.tally())

    def inspect(self, path: str, base: str, prompt: str, answer: str) -> tuple[str, str]:
        """The page of `retone inspect` for a file, and what stands in the way of training."""
        data = jobs.data_values(path, prompt, answer)
        sets = [f"data.columns={toml_value(data['columns'])}"] if "columns" in data else []
        found = inspect([path], flags={"model": base}, sets=sets, offline=self._offline)
        errors = [finding.message for finding in found.diagnosis.errors]
        return found.page(Path(path).name), "; ".join(errors)

    def _find(self, name: str) -> Run:
        return self._given if self._given and self._given.name == name else find_run(name)

    def close(self) -> None:
        """Let the model go."""
        if self._open is not None:
            self._open[1].close()


def _serve(
    desk: FrontDesk, chosen: str | None, listener: socket.socket, host: str, password: str | None,
    *, api_only: bool,
) -> None:  # fmt: skip
    import uvicorn

    from retone.inference.api import Adapters, create_api

    adapters = Adapters(desk.load_adapter, desk.unload_adapter)
    api: Any = create_api(desk.served, adapters, local=is_loopback(host), token=password)
    if not api_only:
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
        import gradio

        from retone.inference.app import CSS, build_app, theme
        from retone.inference.desk import Desk

        pages = build_app(
            Desk(
                runs=desk.runs, open=desk.open, vote=desk.vote, choices=jobs.choices,
                inspect=desk.inspect, start=jobs.start, job=jobs.state, stop=jobs.stop,
            ),
            chosen,
        )  # fmt: skip
        api = gradio.mount_gradio_app(
            api, pages, path="/", theme=theme(), css=CSS, footer_links=[], ssr_mode=False,
            auth=(USER, password) if password else None, max_file_size="1gb",
        )  # fmt: skip
    listener.listen()
    address = f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"
    console.err.print(f"API: {address}/v1" + ("" if api_only else f"   app: {address}"))
    console.err.print("Ctrl-C stops it", style="dim")
    server = uvicorn.Server(uvicorn.Config(api, log_level="warning", timeout_graceful_shutdown=5))
    try:
        server.run(sockets=[listener])
    finally:
        desk.close()


def _named(text: str) -> tuple[str, str]:
    """NAME=RUN_OR_FOLDER in its parts; InputError where it is not that."""
    name, _, path = text.partition("=")
    if not name or not path:
        raise InputError(
            "an adapter is given as its name and where it is",
            f"--adapter {text}",
            "--adapter NAME=RUN_OR_FOLDER",
            "wrong-adapter-flag",
        )
    return name, path


def _refuse_for_vllm(adapters: Sequence[str]) -> None:
    if adapters:
        raise InputError(
            "vLLM is started with the run's own adapter only",
            f"--adapter {adapters[0]}",
            "leave --engine vllm or --adapter out",
            "not-for-vllm",
        )


def _bound(host: str, port: int) -> socket.socket:
    """A socket at the address; MachineError where it is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise MachineError(
            "the address cannot be used",
            f"{host} port {port}: {error.strerror}",
            "retone serve --port 0   (takes a free one)",
            "port-taken",
        ) from error
    return listener


def _require_packages(api_only: bool) -> None:
    wanted = ["fastapi", "uvicorn"] + ([] if api_only else ["gradio"])
    missing = [name for name in wanted if find_spec(name) is None]
    if missing:
        raise MachineError(
            "the web app and the API need further packages",
            f"not installed: {', '.join(missing)}",
            "pip install 'retone[app]'",
            "no-app",
        )


def _report(run: Run) -> str:
    return run.report.read_text(encoding="utf-8") if run.report.is_file() else ""


def _about(run: Run) -> str:
    """The verdict and what to know of the base, in a line."""
    verdict = read_json(run.scores)["verdict"] if run.status == "finished" else "not evaluated yet"
    note = read_json(run.manifest)["base"]["note"]
    return f"**{run.name}**: {verdict}." + (f" {note}" if note else "")
