"""A Gradio chat on Plaudit: `pip install 'plaudit[gradio]'`, then `python gradio_chat.py`.

PLAUDIT_URL and PLAUDIT_API_KEY (roles chat and feedback) say where; the local run needs neither.
"""

import gradio as gr

from plaudit import Plaudit
from plaudit.integrations.gradio import PlauditChat


def build() -> gr.Blocks:
    """The application."""
    chat = PlauditChat(Plaudit(), max_tokens=256)
    with gr.Blocks(title="Plaudit") as demo:
        # Editing an answer corrects it. Strings beside Like and Dislike become tags.
        chatbot = gr.Chatbot(editable="all", feedback_options=["Like", "Dislike", "Untrue", "Too long"])
        gr.ChatInterface(chat.respond, chatbot=chatbot, concurrency_limit=20)
        chat.listen(chatbot)
    return demo


if __name__ == "__main__":
    build().launch()
