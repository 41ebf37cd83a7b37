"""A Chainlit chat on Plaudit: `pip install 'plaudit[chainlit]'`, then `chainlit run chainlit_chat.py`.

PLAUDIT_URL and PLAUDIT_API_KEY (roles chat and feedback) say where; the local run needs neither.
"""

import chainlit as cl

from plaudit import AsyncPlaudit
from plaudit.integrations.chainlit import PlauditDataLayer, answer

client = AsyncPlaudit()


@cl.data_layer
def data_layer() -> PlauditDataLayer:
    """Thumbs go to Plaudit; nothing else is kept."""
    return PlauditDataLayer(client)


@cl.on_message
async def on_message(message: cl.Message) -> None:
    """Answer with the whole conversation in mind."""
    await answer(client, cl.chat_context.to_openai(), max_tokens=256)
