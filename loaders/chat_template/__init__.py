"""Chat templates: a model's own, run in a metered sandbox, and the ones that llama.cpp knows by name."""

from .builtin import BUILTIN, builtin_template
from .messages import Takes, adapt_messages, takes
from .template import BrokenTemplate, ChatTemplate, template_for

__all__ = [
    "BUILTIN",
    "BrokenTemplate",
    "ChatTemplate",
    "Takes",
    "adapt_messages",
    "builtin_template",
    "takes",
    "template_for",
]
