"""A Gradio chat on Plaudit whose thumbs reach the answer that they were given to.

    import gradio as gr
    from plaudit import Plaudit
    from plaudit.integrations.gradio import PlauditChat

    chat = PlauditChat(Plaudit())
    with gr.Blocks() as demo:
        chatbot = gr.Chatbot(editable="all")
        gr.ChatInterface(chat.respond, chatbot=chatbot)
        chat.listen(chatbot)
    demo.launch()

The id of an answer travels with its message, in the message's own metadata. So any number of sessions, a retry, an undo
and a conversation that the browser saved all find the right answer.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Unpack

import gradio as gr

from plaudit import Plaudit, PlauditError
from plaudit.resources.chat import ChatOptions

Message = Mapping[str, Any]
"""One entry of a `gr.Chatbot`'s value: `role`, `content`, `metadata`."""

ID_PREFIX = "chatcmpl-"
REMEMBERED = 10_000
"""Of how many answers it is remembered what was said beside a thumb."""


def session_user(request: gr.Request) -> str:
    """Who is asking: the name that was logged in with, else this visit of the page."""
    return str(request.username or request.session_hash)


class PlauditChat:
    """A chat function and its listeners.

    Args:
        client: of the server that answers. Its key needs the roles chat and feedback.
        end_user: names who asks and who rates; it must name both alike, since an answer can be rated only by whom it
            was given to. Without one: the login's name, else the visit, so that a reloaded page cannot rate what it
            showed before.
        system: a system message put before every conversation.
        options: of every chat, as for `Plaudit.chat.stream`: `model`, `max_tokens`, `train` and so on.
    """

    def __init__(
        self,
        client: Plaudit,
        *,
        end_user: Callable[[gr.Request], str] = session_user,
        system: str | None = None,
        **options: Unpack[ChatOptions],
    ) -> None:
        self.client = client
        self.end_user = end_user
        self.system = system
        self.options = options
        self._beside: OrderedDict[tuple[str, str], dict[str, Any]] = OrderedDict()

    def respond(self, message: str, history: list[Any], request: gr.Request) -> Iterator[gr.ChatMessage]:
        """The function of a `gr.ChatInterface`: the answer as it grows. Stopping it makes the server stop too."""
        asked = conversation(message, history, self.system)
        options: ChatOptions = {**self.options, "user": self.end_user(request)}
        try:
            with self.client.chat.stream(asked, **options) as stream:
                for _ in stream:
                    yield answer(stream.text, stream.response_id)
        except PlauditError as error:
            raise gr.Error(str(error)) from error

    def listen(self, chatbot: gr.Chatbot) -> None:
        """Forward the chatbot's thumbs and, where it lets answers be edited, the edits. Call it inside `gr.Blocks`."""
        chatbot.like(self.rate, chatbot, api_visibility="private", show_progress="hidden")
        if chatbot.editable == "all":
            chatbot.edit(self.correct, chatbot, api_visibility="private", show_progress="hidden")

    def rate(self, history: list[Any], data: gr.LikeData, request: gr.Request) -> None:
        """The listener of `gr.Chatbot.like`: a thumb; none any more; or, of `feedback_options`, another as a tag."""
        response_id = response_id_at(history, _row(data.index))
        if response_id is None:
            return
        if data.liked in (True, False):
            self._say(response_id, request, value=data.liked, tags=[])
        elif data.liked:
            self._say(response_id, request, tags=[str(data.liked)])
        else:  # Gradio says "" when what is pressed is pressed again
            self._say(response_id, request, value=None, tags=[])

    def correct(self, history: list[Any], data: gr.EditData, request: gr.Request) -> None:
        """The listener of `gr.Chatbot.edit`: an edited answer is what it should have been. Edits of one's own
        questions are nobody's correction."""
        row = _row(data.index)
        response_id = response_id_at(history, row)
        if response_id is not None and history[row]["role"] == "assistant":
            self._say(response_id, request, correction=text_of(data.value))

    def _say(self, response_id: str, request: gr.Request, **said: Any) -> None:
        """One word. It replaces the one before with all that it said, so a tag and a correction are said again."""
        user = self.end_user(request)
        beside = self._beside.get((response_id, user), {}) | {key: said[key] for key in said if key != "value"}
        vote = {"value": said["value"]} if "value" in said else {}
        try:
            if vote == {"value": None}:  # takes everything back
                self.client.feedback.create(response_id, end_user=user, **vote)
                vote = {}
            if vote or any(beside.values()):
                self.client.feedback.create(response_id, end_user=user, **vote, **beside)
        except PlauditError as error:
            raise gr.Error(f"Your rating was not kept: {error}") from error
        self._remember((response_id, user), beside)

    def _remember(self, who: tuple[str, str], beside: dict[str, Any]) -> None:
        self._beside.pop(who, None)
        if any(beside.values()):
            self._beside[who] = beside
            if len(self._beside) > REMEMBERED:
                self._beside.popitem(last=False)


def answer(text: str, response_id: str | None) -> gr.ChatMessage:
    """A message that knows which answer it is. `id` is the one key of the metadata that Gradio carries and does not
    show."""
    metadata = {} if response_id is None else {"id": response_id}
    return gr.ChatMessage(content=text, metadata=metadata)


def response_id_at(history: Sequence[Message], index: int) -> str | None:
    """The answer that the message at `index` is of, or that the run of messages beginning there holds; None where
    Plaudit did not give it."""
    if not 0 <= index < len(history):
        return None
    role = history[index]["role"]
    for message in history[index:]:
        if message["role"] != role:
            break
        found = (message.get("metadata") or {}).get("id")
        if isinstance(found, str) and found.startswith(ID_PREFIX):
            return found
    return None


def conversation(message: str, history: Sequence[Message], system: str | None = None) -> list[dict[str, str]]:
    """What to ask Plaudit: Gradio's history in OpenAI's shape, text only, thoughts left out."""
    said = [{"role": "system", "content": system}] if system else []
    for entry in history:
        if not (entry.get("metadata") or {}).get("title"):
            said.append({"role": entry["role"], "content": text_of(entry["content"])})
    return [*said, {"role": "user", "content": message}]


def text_of(content: Any) -> str:
    """The text of a message's content: a string, or parts of which some are text."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list | tuple) else [content]
    return "\n".join(p if isinstance(p, str) else p.get("text", "") for p in parts if isinstance(p, str | dict))


def _row(index: int | tuple[int, int] | list[int]) -> int:
    return index if isinstance(index, int) else index[0]
