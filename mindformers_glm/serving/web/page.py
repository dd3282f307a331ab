"""The web page: a chat with a server's model, written with gradio.

Read with gradio 6.17.3: `Blocks`, `Chatbot` (its "thoughts" are what can be folded), events.
"""

import html
import math
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import gradio as gr

from mindformers_glm.core.errors import ConfigError, GlmError
from mindformers_glm.serving.chat.files import parse_tools
from mindformers_glm.serving.chat.model import Message
from mindformers_glm.serving.chat.server import ServerModel
from mindformers_glm.serving.web.answer import Answers, follow_answer, write_error
from mindformers_glm.serving.web.conversation import Conversation, write_entries
from mindformers_glm.serving.web.words import (
    CHINESE,
    ENGLISH,
    PAGE_FIELDS,
    WORDS,
    choose_language,
    spell,
)

_FORMULAS = [
    {"left": "$$", "right": "$$", "display": True},
    {"left": "\\[", "right": "\\]", "display": True},
    {"left": "\\(", "right": "\\)", "display": False},
]
_FILLED = {"fill_height": True, "fill_width": True}
_NARROW_PX = 768  # up to which gradio's sidebar covers all of the page
_MAX_CHARACTERS = 1_000_000  # of a message; the server says how much it reads
# Of all events: no wheel over what is read, not for programs, and as many visitors at once as
# come: how many answers there are is the server's to say. By gradio's own rule, "once", an event
# behind another one is dropped while the last of its kind still runs.
_QUIET: dict[str, Any] = {
    "show_progress": "hidden",
    "api_visibility": "private",
    "concurrency_limit": None,
    "trigger_mode": "multiple",
}


@dataclass(frozen=True)
class PageSettings:
    """Where the model is, and what the page's fields hold at first.

    model: its name at the server; "": visitors choose one of those the server names.
    fields: what each request says besides; not told to visitors, nor is the key.
    sampling: first values of PAGE_FIELDS.
    tools: a JSON list of functions as text; "": none.
    """

    url: str
    model: str
    api_key: str
    fields: Mapping[str, Any]
    sampling: Mapping[str, Any]
    system: str
    tools: str


class ChatPage:
    """The page's parts, and what each of its events does.

    blocks: the page as gradio has it.
    """

    def __init__(self, settings: PageSettings) -> None:
        self.answers = Answers()
        self._settings = settings
        with gr.Blocks(title="mindformers_glm", analytics_enabled=False, **_FILLED) as page:
            self.blocks = page
            self._conversation = gr.State(Conversation())
            self._width = gr.Number(visible=False)  # of the browser's window
            with gr.Sidebar(width=340) as self._sidebar:
                self._add_settings(settings)
            self._chatbot = gr.Chatbot(
                elem_id="chat",
                **spell("chat"),
                scale=1,
                min_height=300,
                buttons=["copy"],
                allow_tags=False,
                latex_delimiters=_FORMULAS,
                feedback_options=None,
            )
            self._status = gr.HTML(elem_id="status")
            self._box = gr.Textbox(
                elem_id="box",
                show_label=False,
                container=False,
                max_lines=10,
                max_length=_MAX_CHARACTERS,
                autofocus=True,
                submit_btn=True,
            )
            parts = [self._heading, self._clear, self._model, self._system, *self._numbers]
            parts += [self._tools, self._chatbot]
            self._worded = {part.elem_id: part for part in parts}
            self._connect()

    def _add_settings(self, settings: PageSettings) -> None:
        self._language = gr.Radio(
            [CHINESE, ENGLISH], value=ENGLISH, show_label=False, elem_id="language"
        )
        self._clear = gr.Button(elem_id="clear", **spell("clear"))
        self._heading = gr.Markdown(elem_id="heading", **spell("heading"))
        names = [settings.model] if settings.model else []
        self._model = gr.Dropdown(
            names, value=settings.model or None, elem_id="model", **spell("model")
        )
        self._system = gr.Textbox(
            settings.system, lines=3, max_lines=8, elem_id="system", **spell("system")
        )
        with gr.Row():
            self._numbers = [
                # gradio's Number sends 0 where it is empty.
                gr.Textbox(
                    _write(settings.sampling.get(name)),
                    elem_id=name,
                    min_width=130,
                    **spell(name),
                )
                for name in PAGE_FIELDS
            ]
        self._tools = gr.Textbox(
            settings.tools, lines=3, max_lines=12, elem_id="tools", **spell("tools")
        )

    def _connect(self) -> None:
        """Say which event does what."""
        language, conversation, box = self._language, self._conversation, self._box
        chat = [self._chatbot, self._status, box]
        labels = list(self._worded.values())
        self.blocks.load(
            self._greet,
            self._width,
            [self._sidebar, language, box, *labels],
            js="() => window.innerWidth",
            **_QUIET,
        ).then(self._list_models, None, [self._model, self._status], **_QUIET)
        self.blocks.unload(self._stop)
        box.submit(
            self._take,
            {box, conversation, language, self._tools, *self._numbers},
            chat,
            **_QUIET,
        ).then(
            self._answer,
            {conversation, language, self._model, self._system, self._tools, *self._numbers},
            [self._chatbot, self._status],  # with the field, what is typed meanwhile was lost
            **_QUIET,
        ).then(self._finish, [conversation, language], [self._chatbot, box], **_QUIET)
        box.stop(self._stop, None, None, **_QUIET)
        for event in (self._clear.click, self._chatbot.clear):
            event(self._begin_anew, [conversation, language], [conversation, *chat], **_QUIET)
        language.input(
            self._translate,
            [conversation, language],
            [self._chatbot, self._status, box, *labels],
            **_QUIET,
        )

    def _greet(self, width: float | None, request: gr.Request) -> list[Any]:
        """Speak the language of a visitor's browser, and leave a narrow window to the chat."""
        language = _language_of(request)
        sidebar = gr.update(open=width is None or width > _NARROW_PX)
        return [sidebar, language, *self._write_labels(language, Conversation())]

    def _list_models(self, request: gr.Request) -> list[Any]:
        """Offer the models that the server has now."""
        if self._settings.model:
            return [gr.skip(), ""]
        try:
            names = self._reach("?", {}).model_names()
        except GlmError as problem:
            return [gr.skip(), write_error(problem, WORDS[_language_of(request)])]
        return [gr.update(choices=names, value=names[0]), ""]

    def _take(self, values: Mapping[Any, Any]) -> list[Any]:
        """Make what was typed a part of the conversation."""
        words = WORDS[values[self._language]]
        conversation: Conversation = values[self._conversation]
        if conversation.is_asked:  # Enter, while an answer comes: the text stays
            return [gr.skip()] * 3
        try:
            self._read_request(values, words)
        except ConfigError as problem:  # before the text is gone from its field
            return [gr.skip(), write_error(problem, words), gr.skip()]
        conversation.add(values[self._box])
        return [
            write_entries(conversation.messages, words),
            html.escape(words["waiting"]) if conversation.is_asked else "",
            self._update_box(conversation, words, value=""),
        ]

    def _answer(self, values: Mapping[Any, Any], request: gr.Request) -> Iterator[list[Any]]:
        """Show an answer as it comes and keep it; without one the question goes back.

        Args:
            values: what the page's parts hold.
        """
        conversation: Conversation = values[self._conversation]
        if not conversation.is_asked or conversation.is_answered:
            return
        conversation.is_answered = True
        words, visitor = WORDS[values[self._language]], str(request.session_hash)
        system = values[self._system]
        asked: list[Message] = [{"role": "system", "content": system}] if system.strip() else []
        asked += conversation.messages
        try:
            fields, tools = self._read_request(values, words)
            model = self._reach(values[self._model] or "", fields)
            self.answers.begin(visitor, model)
            if conversation.is_forgotten:  # between being taken and now: nothing was there to stop
                return
            with closing(model.answer(asked, tools)) as pieces:
                for shown in follow_answer(pieces, model, conversation, words):
                    # What was forgotten is not shown again.
                    yield [gr.skip()] * 2 if conversation.is_forgotten else shown
        except GlmError as problem:
            conversation.take_back()
            if not conversation.is_forgotten:
                yield [write_entries(conversation.messages, words), write_error(problem, words)]
        finally:
            self.answers.end(visitor)
            conversation.is_answered = False
            if conversation.is_asked:  # nobody looks any more
                conversation.take_back()

    def _read_request(
        self, values: Mapping[Any, Any], words: Mapping[str, str]
    ) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Read the fields that a request has besides the conversation, and the tools."""
        fields = {
            name: _read_number(text, words[name], words, is_whole=is_whole)
            for (name, is_whole), part in zip(PAGE_FIELDS.items(), self._numbers, strict=True)
            if (text := (values[part] or "").strip())
        }
        tools = values[self._tools] or ""
        return fields, parse_tools(tools, words["tools_place"]) if tools.strip() else []

    def _finish(self, conversation: Conversation, language: str) -> list[Any]:
        """Let the visitor type again; in the language that was chosen meanwhile."""
        # Nothing was taken, or another message meanwhile.
        if conversation.is_asked or not conversation.is_changed:
            return [gr.skip()] * 2
        conversation.is_changed = False
        words = WORDS[language]
        text, conversation.unanswered = conversation.unanswered, ""
        return [
            write_entries(conversation.messages, words),
            self._update_box(conversation, words, **({"value": text} if text else {})),
        ]

    def _stop(self, request: gr.Request) -> None:
        self.answers.stop(str(request.session_hash))

    def _begin_anew(
        self, conversation: Conversation, language: str, request: gr.Request
    ) -> list[Any]:
        conversation.is_forgotten = True
        self._stop(request)
        fresh = Conversation()
        return [fresh, [], "", self._update_box(fresh, WORDS[language])]

    def _translate(self, conversation: Conversation, language: str) -> list[Any]:
        entries = write_entries(conversation.messages, WORDS[language])
        # While an answer comes, it is shown as it was begun, and anew at its end.
        chat = gr.skip() if conversation.is_asked else entries
        return [chat, "", *self._write_labels(language, conversation)]

    def _write_labels(self, language: str, conversation: Conversation) -> list[Any]:
        words = WORDS[language]
        return [
            gr.update(placeholder=_ask_for(conversation, words)),
            *(gr.update(**spell(name, words)) for name in self._worded),
        ]

    def _update_box(
        self, conversation: Conversation, words: Mapping[str, str], **updates: Any
    ) -> Any:
        is_asked = conversation.is_asked
        return gr.update(
            placeholder=_ask_for(conversation, words),
            submit_btn=not is_asked,
            stop_btn=is_asked,
            **updates,
        )

    def _reach(self, model: str, fields: Mapping[str, Any]) -> ServerModel:
        settings = self._settings
        fields = {**settings.fields, **fields}
        return ServerModel(settings.url, model=model, api_key=settings.api_key, fields=fields)


def _write(number: float | None) -> str:
    return "" if number is None else str(number)


def _read_number(text: str, name: str, words: Mapping[str, str], *, is_whole: bool) -> float:
    try:
        number: float = int(text) if is_whole else float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):  # JSON has no such number
        kind = words["whole_number" if is_whole else "number"]
        raise ConfigError(words["no_number"].format(name=name, kind=kind, text=text))
    return number


def _ask_for(conversation: Conversation, words: Mapping[str, str]) -> str:
    """What the field for the next message says."""
    if name := conversation.open_call:
        return words["give_result"].format(name=name)
    return words["type"]


def _language_of(request: gr.Request) -> str:
    return choose_language(request.headers.get("accept-language", ""))
